"""A run's samples: its shards and tokenizer, checked against the settings, which of them each stage
reads, and each sample as a batch of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from data_pipeline.protocol import context_pieces, document_pieces
from data_pipeline.schema import Sample
from data_pipeline.shards.order import BuiltReads, MixtureReads, StageReads
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.sampling import source_pools
from data_pipeline.tokenizer import TokenizedPieces, Tokenizer, load_tokenizer
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.model.batch import IGNORE, MemoryBatch, context_positions
from msa_train.model.config import RouterConfig

_LOOKED_AT = 4  # samples of a source


def open_shards(config: Config) -> ShardReader:
    """The run's shards. Raises ConfigError for shards built from other settings."""
    reader = ShardReader(
        config.shards,
        skip_damaged=config.training.damaged_samples == "skip",
        cache=config.path / "shard-cache",
        cache_gb=config.training.cache_gb,
    )
    if not reader.manifest.matches(config.corpus):
        if reader.manifest.begins(config.corpus):
            raise ConfigError(
                f"{config.shards} has the beginning of what the stages ask for now: make it longer "
                f"with `msa data build`{' in its own output' if config.training.shards else ''}"
            )
        raise ConfigError(
            f"{config.shards} was built from other settings: "
            f"{reader.manifest.differences(config.corpus)}: give those, or build the shards again "
            "(msa data build) under another output"
        )
    return reader


def stage_reads(config: Config, reader: ShardReader) -> list[StageReads]:
    """What each stage reads of the run's shards.

    Raises ConfigError where a stage draws from a source of which too few samples were built.
    """
    size = config.training.batch_samples
    samples = [stage.samples for stage in reader.manifest.stages]
    reads: list[StageReads] = []
    built = 0
    for stage in config.stages:
        if not stage.draws_from:
            reads.append(BuiltReads(built, stage.stop_after and stage.stop_after * size))
            built += 1
            continue
        pools = source_pools(config.corpus, samples, config.drawn_stages(stage))
        weights = {name: weight for name, weight in stage.data.weights.items() if weight}
        if missing := [name for name in weights if name not in pools]:
            raise ConfigError(
                f"stages[{stage.name}].data.weights names {missing}, of which {config.shards} has "
                f"no sample in the stages {', '.join(stage.draws_from)}: give 0"
            )
        pools = {name: pool for name, pool in pools.items() if name in weights}
        _check_pools(config, reader, pools)
        reads.append(MixtureReads(pools, weights, stage.steps * size))
    return reads


def _check_pools(config: Config, reader: ShardReader, pools: Mapping[str, np.ndarray]) -> None:
    """Which sample is of which source follows from a random draw: a look whether it still does."""
    for name, pool in pools.items():
        found = {reader[int(sample)].source for sample in pool[:_LOOKED_AT]}
        if found != {name} and not reader.skipped:
            raise ConfigError(
                f"{config.shards} has samples of {sorted(found)} where those of {name} should be: "
                "it was built by another version of NumPy; build the shards again"
            )


def checked_tokenizer(config: Config, reader: ShardReader) -> Tokenizer:
    """The shards' tokenizer. Raises ConfigError where the model, or what it starts from, does not
    know it."""
    tokenizer = reader.tokenizer()
    if tokenizer.vocab_size > config.model.vocab_size:  # backbones have rows to spare
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {config.shards} "
            f"has {tokenizer.vocab_size} tokens: set model.vocab_size to that"
        )
    start = config.training.start_from
    expected = None if start is None else load_tokenizer(start).fingerprint
    if expected not in (None, tokenizer.fingerprint):
        raise ConfigError(
            f"training.start_from is {start}, whose tokenizer is not that of {config.shards}: set "
            f"data.tokenizer.path to {start} and build the shards again"
        )
    return tokenizer


def samples_per_group(config: Config, groups: int, size: int) -> int:
    """Samples of a step that each of `groups` groups of `size` data-parallel ranks reads, which are
    single ranks without document parallelism."""
    share, rest = divmod(config.training.batch_samples, groups)
    if rest or not share:
        who = "data-parallel ranks" if size == 1 else f"groups of {size} ranks each"
        raise ConfigError(
            f"training.batch_samples is {config.training.batch_samples}, which {groups} {who} "
            "cannot share: give a multiple"
        )
    return share


class Collate:
    """Tokenizes samples (text) and packs them into one MemoryBatch (tensors), a bank per sample.

    The router's top_k shifts the positions of what follows the template head (SPEC section 1), and
    it says which tokens route. Where no layer reads pooled states and no context of a sample routes
    (answers from texts alone), its documents change nothing and are left out. Runs in the loader's
    prefetch thread.
    """

    def __init__(self, tokenizer: Tokenizer, router: RouterConfig):
        self._tokenizer, self._top_k = tokenizer, router.top_k
        self._frame, self._reads = router.frame_routes, router.reads != "none"

    def __call__(self, samples: Sequence[Sample]) -> MemoryBatch:
        encode = self._tokenizer.encode_pieces
        samples = [self._needed(sample) for sample in samples]
        documents = [document for sample in samples for document in sample.documents]
        texts = [encode(document_pieces(each.number, each.text)).tokens for each in documents]
        contexts = [encode(context_pieces(c)) for sample in samples for c in sample.contexts]
        lengths = [len(context.tokens) for context in contexts]
        heads = [context.head_length for context in contexts]
        numbers = [document.number for document in documents]
        digests = [_digest(document.text) for document in documents]
        return MemoryBatch(
            doc_tokens=_flat(texts),
            doc_cu=_cumulative([len(tokens) for tokens in texts]),
            doc_numbers=torch.tensor(numbers, dtype=torch.int64),
            doc_ids=torch.tensor(digests, dtype=torch.int64),
            bank_cu=_cumulative([len(sample.documents) for sample in samples]),
            tokens=_flat([context.tokens for context in contexts]),
            ctx_cu=_cumulative(lengths),
            ctx_bank=torch.tensor([i for i, s in enumerate(samples) for _ in s.contexts]),
            positions=torch.cat(
                [context_positions(n, h, self._top_k) for n, h in zip(lengths, heads, strict=True)]
            ),
            is_query=_flat([[r.routes(self._frame) for r in c.roles] for c in contexts]).bool(),
            memory_from=torch.tensor(heads, dtype=torch.int64),
            labels=_flat([_shifted(context) for context in contexts]),
            positives=_document_mask(samples, "positives"),
            masked=_document_mask(samples, "masked"),
        )

    def _needed(self, sample: Sample) -> Sample:
        if self._reads or any(context.positives for context in sample.contexts):
            return sample
        contexts = tuple(replace(context, masked=()) for context in sample.contexts)
        return replace(sample, documents=(), contexts=contexts)


def _digest(text: str) -> int:
    """64 bits of a text."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _shifted(context: TokenizedPieces) -> list[int]:
    """Label of each token: the next one, where the model writes that; IGNORE elsewhere."""
    following = zip(context.tokens[1:], context.labels[1:], strict=True)
    return [token if written else IGNORE for token, written in following] + [IGNORE]


def _document_mask(samples: Sequence[Sample], name: str) -> torch.Tensor:
    """[m, n] bool: the documents that each context names as `name`."""
    contexts = sum(len(sample.contexts) for sample in samples)
    mask = torch.zeros(contexts, sum(len(s.documents) for s in samples), dtype=torch.bool)
    row = first = 0
    for sample in samples:
        place = {document.number: first + i for i, document in enumerate(sample.documents)}
        for context in sample.contexts:
            mask[row, [place[number] for number in getattr(context, name)]] = True
            row += 1
        first += len(sample.documents)
    return mask


def _flat(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([value for each in lists for value in each], dtype=torch.int64)


def _cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
