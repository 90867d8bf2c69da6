"""How a run is spread over ranks, which ways there are, and what refuses one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple, get_args

from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.hardware import Cluster
from msa_train.model.config import Recompute
from msa_train.parallel.slots import replicas_of
from msa_train.training.data import samples_per_group

Offload = Literal["none", "optimizer", "parameters"]
_CACHES = (4096, 16_384, 65_536)  # tokens of a group of the gradient cache that are tried


@dataclass(frozen=True)
class Passes:
    """A step's passes over the model on one rank. groups: in which a sample's documents are encoded
    apart from its contexts (0: together with them, in one pass). twice: first without a graph."""

    samples: int
    groups: int
    twice: bool

    @property
    def forwards(self) -> int:
        """Forward passes of all samples."""
        return self.samples * ((1 + self.twice) * self.groups + 1)

    @property
    def backwards(self) -> int:
        return self.samples * (self.groups + 1)


class Buffers(NamedTuple):
    """Between files and the optimizer: how many, each of about so many elements at most, a group's
    that changes at once."""

    count: int
    elements: int


@dataclass(frozen=True)
class Layout:
    """tensor: ranks that share each layer. documents: data-parallel ranks that share each sample.
    replicas: such groups, each of which reads its own samples. cache: document tokens of a group of
    the gradient cache (None: without one). offload: of the optimizer's states, or of the weights
    too, to host memory. sharded: pooled states stay where they were made. sequence: tensor-parallel
    ranks split tokens between the products. files: the optimizer's states go there instead, through
    these buffers.
    """

    tensor: int = 1
    documents: int = 1
    replicas: int = 1
    zero: int = 1
    recompute: Recompute = "none"
    cache: int | None = None
    offload: Offload = "none"
    sharded: bool = False
    sequence: bool = False
    files: Buffers | None = None

    def passes(self, tokens: int, samples: int = 1) -> Passes:
        """Of a rank that has `tokens` of the documents of each sample; one group's graph is kept,
        but by ZeRO-3 (msa_train/training/gradient_cache.py)."""
        groups = int(self.documents > 1)
        if self.cache is not None and self.cache < tokens:
            groups = -(-tokens // self.cache)
        return Passes(samples, groups, groups > 1 or (groups == 1 and self.zero == 3))

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.documents * self.replicas

    @property
    def owners(self) -> int:
        """Ranks that the optimizer's states are divided over, each of which updates its share."""
        return self.data if self.zero else 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.data

    @classmethod
    def of(cls, config: Config, ranks: int) -> Layout:
        """That of the settings on so many ranks. Raises ConfigError where they do not divide."""
        training = config.training
        tensor, documents = training.tensor_parallel, training.document_parallel
        return cls(
            tensor, documents, replicas_of(ranks, tensor, documents), training.zero_stage,
            training.recompute, training.gradient_cache_tokens, offload_of(config), _shards(config),
            training.sequence_parallel, _buffers(config),
        )  # fmt: skip

    def words(self) -> str:
        """As a row of a table names it."""
        cache = "no cache" if self.cache is None else f"cache {self.cache:,}"
        parts = [
            f"TP {self.tensor}{' + SP' * self.sequence}",
            f"documents {self.documents}",
            f"ZeRO-{self.zero}",
        ]
        parts += [f"recompute {self.recompute}", cache, *["pooled states sharded"] * self.sharded]
        if self.offload != "none":
            parts.append(f"offload {self.offload}{' to nvme' * (self.files is not None)}")
        return ", ".join(parts)


def _shards(config: Config) -> bool:
    return config.training.pooled_states == "sharded"


def _buffers(config: Config) -> Buffers | None:
    """None where no states are in files; else as the settings, or DeepSpeed, have them."""
    if config.training.nvme_path is None:
        return None
    zero = config.training.deepspeed["zero_optimization"]
    count = zero["offload_optimizer"].get("buffer_count", 4)
    return Buffers(int(count), int(float(zero.get("sub_group_size", 10**9))))


def offload_of(config: Config) -> Offload:
    """What training.deepspeed sends away."""
    zero = config.training.deepspeed.get("zero_optimization", {})
    for key, meaning in (("offload_param", "parameters"), ("offload_optimizer", "optimizer")):
        if (zero.get(key) or {}).get("device", "none") != "none":
            return meaning
    return "none"


def samples_of(config: Config, layout: Layout) -> int:
    """Samples of a step that each group of ranks reads. Raises ConfigError where some are left."""
    return samples_per_group(config, layout.replicas, layout.documents)


def refusal(config: Config, layout: Layout) -> str | None:
    """Why this run cannot be trained so, as its settings say it when they are made; None where it
    can."""
    try:
        training = replace(
            config.training,
            tensor_parallel=layout.tensor,
            sequence_parallel=layout.sequence,
            document_parallel=layout.documents,
            pooled_states="sharded" if layout.sharded else "gathered",
            zero_stage=layout.zero,
        )
        if (layout.tensor, layout.sharded) != (config.training.tensor_parallel, _shards(config)):
            replace(config, training=training)
        samples_of(config, layout)
    except ConfigError as error:
        return str(error)
    return None


def layouts(config: Config, cluster: Cluster, bank_tokens: int) -> Iterator[Layout]:
    """Every layout of these cards: tensor parallel within a machine, documents over any ranks.

    bank_tokens: of the longest bank; groups of the gradient cache are shorter than a rank's share.
    """
    offload, own = offload_of(config), config.training.gradient_cache_tokens
    tensors = _divisors(cluster.per_node)
    files = _buffers(config)
    zeros = range(0 if config.training.precision == "fp32" else 1, 4)
    for tensor in tensors:
        data = cluster.cards // tensor
        for documents in _divisors(data):
            share = bank_tokens / documents
            caches = [None, *sorted({each for each in (*_CACHES, own) if each and each < share})]
            ways = product(zeros, get_args(Recompute), caches, (False, True)[: 1 + (tensor > 1)])
            for zero, recompute, cache, sequence in ways:
                replicas = data // documents
                sharded = documents > 1 and _shards(config)
                divided = tensor, documents, replicas
                yield Layout(*divided, zero, recompute, cache, offload, sharded, sequence, files)


def _divisors(count: int) -> Sequence[int]:
    """Powers of two that divide it, and itself."""
    found = {1 << shift for shift in range(count.bit_length()) if not count % (1 << shift)}
    return sorted(found | {count})
