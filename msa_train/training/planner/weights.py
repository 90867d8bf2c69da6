"""A model's weights as a rank holds them: how many, of which part, reached by what."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from msa_train.model.architecture import WeightMap
from msa_train.model.config import ModelConfig
from msa_train.model.weights import part_of, weight_maps
from msa_train.stages import Trains, trained_alone

# Elements of a weight that every rank of ZeRO-3 keeps, by DeepSpeed where a run says nothing.
WHOLE = 10**5
_NAMES = {"linear_qkv": "attention", "linear_proj": "attention", "mlp": "feed-forward"}


@dataclass(frozen=True)
class Weight:
    """A parameter of the training module on one rank. group: of the optimizer. part: for reading.
    learns: some stage trains it. encodes: the gradient of documents' pooled states reaches it."""

    numel: int
    part: str
    group: tuple[str, bool]
    learns: bool
    encodes: bool


@dataclass(frozen=True, eq=False)
class RankWeights:
    """All weights of a rank, and how many elements of them are what."""

    each: tuple[Weight, ...]

    def __iter__(self) -> Iterator[Weight]:
        return iter(self.each)

    @cached_property
    def all(self) -> int:
        return sum(each.numel for each in self)

    @cached_property
    def learning(self) -> int:
        return sum(each.numel for each in self if each.learns)

    @cached_property
    def encoding(self) -> int:
        """Of those that learn, what the gradient of documents' pooled states reaches."""
        return sum(each.numel for each in self if each.learns and each.encodes)

    @cached_property
    def whole(self) -> int:
        """That every rank of ZeRO-3 keeps."""
        return sum(each.numel for each in self if each.numel <= WHOLE)

    @cached_property
    def apart(self) -> int:
        """Weights, not elements, that ZeRO-3 gathers for each pass."""
        return sum(each.numel > WHOLE for each in self)

    @cached_property
    def groups(self) -> int:
        """Of the optimizer, that have something to learn."""
        return len({each.group for each in self if each.learns})

    @cached_property
    def largest(self) -> int:
        return max(each.numel for each in self)

    @cached_property
    def largest_group(self) -> float:
        """The largest group of the optimizer, as a share of what learns: groups change in turn."""
        sizes: Counter[tuple[str, bool]] = Counter()
        for each in self:
            sizes[each.group] += each.numel * each.learns
        return max(sizes.values()) / max(1, self.learning)

    @cached_property
    def head(self) -> int:
        """Of the first gradient that a backward pass makes."""
        ends = (each for each in self if each.part in ("embedding", "output") and each.learns)
        return max((each.numel for each in ends), default=0)


@functools.cache
def weights(
    model: ModelConfig, tensor: int = 1, trains: frozenset[Trains] = frozenset({"all"})
) -> RankWeights:
    """Of a rank of `tensor` that share the model. trains: what the stages of a run train."""
    alone = trained_alone(trains)
    return RankWeights(tuple(_weight(each, model, tensor, alone) for each in weight_maps(model)))


def _weight(each: WeightMap, model: ModelConfig, tensor: int, alone: Trains | None) -> Weight:
    shapes = [[model.sizes[size] for size in shape] for shape in each.published.values()]
    numel = sum(math.prod(shape) for shape in shapes)
    owner = part_of(each.megatron, model)
    return Weight(
        numel if each.split == "whole" else numel // tensor,
        _part(each.megatron),
        (owner if owner == "router" else "backbone", len(shapes[0]) == 2),
        alone in (None, owner),
        _encodes(each.megatron, model),
    )


def parts(found: RankWeights) -> dict[str, int]:
    """How many numbers each part has."""
    counts: Counter[str] = Counter()
    for each in found:
        counts[each.part] += each.numel
    return dict(counts)


def _part(name: str) -> str:
    if ".router_" in name:
        return "router"
    if "norm" in name.rpartition(".")[0]:
        return "norms"
    if not name.startswith("decoder"):
        return "output" if name.startswith("output") else "embedding"
    return next(part for word, part in _NAMES.items() if word in name)


def _encodes(name: str, model: ModelConfig) -> bool:
    if name.startswith("embedding"):
        return True
    if not name.startswith("decoder.layers."):
        return False
    layer, last = int(name.split(".")[2]), model.last_router_layer
    if any(word in name for word in ("router_q", "router_gate", "router_threshold")):
        return False
    if layer < last:
        return True
    pools = last in model.reading_layers or not model.router.decouple
    words = ("input_layernorm", "router_k", *(("linear_qkv", "qk_norm") if pools else ()))
    return layer == last and any(word in name for word in words)
