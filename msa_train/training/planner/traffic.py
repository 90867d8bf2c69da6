"""What ranks send one another in a step, by kind: exact where DeepSpeed and Megatron are.

payload: bytes of the whole tensors that a collective is given, over a step. Of those a rank sends
2 (n - 1) / n where n ranks sum them in a ring, (n - 1) / n where they gather or scatter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from msa_train.hardware import Cluster
from msa_train.model.config import ModelConfig
from msa_train.training.planner.layout import Layout, Passes
from msa_train.training.planner.memory import LIVE, reduce_bucket
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.weights import RankWeights

Operation = Literal["all-reduce", "all-gather", "reduce-scatter"]
Kind = Literal["gradients", "weights", "tensor parallel", "pooled states"]


@dataclass(frozen=True)
class Traffic:
    """One operation of a kind, in a step. ranks: that take part; stride: between their numbers.
    hidden: behind arithmetic, as far as there is some. calls: in how many messages of all ranks the
    payload goes, about."""

    kind: Kind
    operation: Operation
    payload: int
    ranks: int
    stride: int = 1
    hidden: bool = False
    calls: int = 1

    @property
    def sent(self) -> float:
        """Bytes of a rank."""
        times = 2 if self.operation == "all-reduce" else 1
        return times * self.payload * (self.ranks - 1) / self.ranks

    def seconds(self, cluster: Cluster) -> float:
        return self.sent / cluster.bandwidth(self.ranks, self.stride) if self.sent else 0.0

    @property
    def hops(self) -> int:
        """Messages behind one another that the calls take: there and back in a tree for a sum, one
        way for a gather."""
        ways = 2 if self.operation == "all-reduce" else 1
        return ways * self.calls * math.ceil(math.log2(max(1, self.ranks)))


def traffic(
    model: ModelConfig,
    layout: Layout,
    weights: RankWeights,
    sample: SampleSize,
    samples: int,
    itemsize: int,
) -> tuple[Traffic, ...]:
    """Of one rank in a step. Arguments as of rank_bytes."""
    own = sample.share(layout.documents)
    passes = layout.passes(own.document_tokens, samples)
    found = [
        *_states(layout, weights, passes, itemsize),
        *_tensor(model, layout, own, passes, itemsize),
        *_documents(model, layout, sample, passes, itemsize),
    ]
    return tuple(each for each in found if each.payload and each.ranks > 1)


def _states(layout: Layout, weights: RankWeights, passes: Passes, size: int) -> Iterator[Traffic]:
    """Gradients and weights, between the ranks that ZeRO divides them over."""
    ring, stage = (layout.data, layout.tensor), layout.zero
    learning = weights.learning
    # Stages 2 and 3 reduce after every backward pass, whatever it reached.
    every = passes.samples * (learning + passes.groups * weights.encoding)
    bucket = reduce_bucket([weights.largest])
    if stage < 3:
        reduced, backwards = (every, passes.backwards) if stage == 2 else (learning, 1)
        calls = max(backwards, math.ceil(reduced / bucket))
        yield Traffic("gradients", "all-reduce", reduced * size, *ring, calls=calls)
        gathered = bool(stage) * learning * size
        yield Traffic("weights", "all-gather", gathered, *ring, calls=weights.groups)
        return
    calls = max(passes.backwards, math.ceil(every / bucket))
    scattered = every * size
    yield Traffic("gradients", "reduce-scatter", scattered, *ring, hidden=True, calls=calls)
    # Passes of documents and of contexts come in turn: DeepSpeed does not know what comes next,
    # and gathers nothing ahead.
    ahead, calls = not passes.groups, weights.apart * (passes.forwards + passes.backwards)
    gathered = _gathered(weights, passes) * size
    yield Traffic("weights", "all-gather", gathered, *ring, hidden=ahead, calls=calls)


def _gathered(weights: RankWeights, passes: Passes) -> int:
    """Elements that ZeRO-3 gathers in a step."""
    whole, apart = weights.whole, weights.all - weights.whole
    if not passes.groups:
        # The backward pass finds those of the forward pass's end, as many as may be live on the
        # way there and back.
        again = max(0, apart - LIVE // 2)
        return whole + passes.samples * (apart + again)
    # Where passes come in turn what was kept whole is freed on the way, and gathered again.
    return 2 * whole + (passes.forwards + passes.backwards) * apart


def _tensor(
    model: ModelConfig, layout: Layout, own: SampleSize, passes: Passes, size: int
) -> Iterator[Traffic]:
    """What the ranks of a model send for its split products: states, of all tokens, and a few of
    the routers' and of the loss."""
    if layout.tensor == 1:
        return
    states = (_split_states if layout.sequence else _states_between)(model, layout, own, passes)
    sent, calls = Counter(), Counter()
    for operation, (document, context) in states.items():
        tokens = own.document_tokens * document + own.context_tokens * context
        sent[operation] += tokens * model.hidden * size
        calls[operation] += context + passes.groups * document
    sent["all-reduce"] += _small_sums(model, layout, own, passes, size)
    chunks, asked = own.chunks(model.router.chunk_size), _asked(model, own)
    width = 4 * model.sizes["router_keys"] * len(model.router_layers)
    twice = 1 + (layout.recompute != "none")
    sent["all-gather"] += (asked * twice + chunks * (twice + passes.twice)) * width
    calls["all-gather"] += len(model.router_layers) * (
        twice + passes.groups * (twice + passes.twice)
    )
    for operation, payload in sent.items():
        messages = passes.samples * calls[operation]
        payload *= passes.samples
        yield Traffic("tensor parallel", operation, payload, layout.tensor, calls=messages)


def _states_between(
    model: ModelConfig, layout: Layout, own: SampleSize, passes: Passes
) -> dict[Operation, tuple[int, int]]:
    """Sums of states behind every pair of split products, and of gradients before them: how often
    those of a document's and of a context's token."""
    again, last = layout.recompute == "layer", model.last_router_layer
    # A layer's two products each send states forward, and gradients of their input back. Behind
    # the last router layer's keys nothing of a document is left.
    encoding = 1 + 2 * last
    document = encoding + again * last + 2 * last + 1 + passes.twice * encoding
    context = 1 + model.layers * (4 + again)
    return {"all-reduce": (document, context)}


def _split_states(
    model: ModelConfig, layout: Layout, own: SampleSize, passes: Passes
) -> dict[Operation, tuple[int, int]]:
    """The same of tokens that the ranks split (sequence parallel; without padding): gathered before
    a product, and once more for its weights' gradient; scattered sums behind it."""
    layers, last = model.layers, model.last_router_layer
    once, layer = layout.recompute != "none", layout.recompute == "layer"
    gathers, scatters = 2 * last + 1, 2 * last + 1  # of a document's encoding: forward
    back = 4 * last + 2, 2 * last + 1
    again = last * (once + layer) + once, last * layer
    document = [
        forward * (1 + passes.twice) + backward + recomputed
        for forward, backward, recomputed in zip((gathers, scatters), back, again, strict=True)
    ]
    context = [1 + layers * (6 + once + layer), 1 + layers * (4 + layer)]
    if own.documents and not passes.groups:  # split anew, where documents leave the stream
        context = [context[0] + 1, context[1] + 1 + layer]
    pairs = zip(document, context, strict=True)
    return dict(zip(("all-gather", "reduce-scatter"), pairs, strict=True))


def _asked(model: ModelConfig, own: SampleSize) -> int:
    """Query vectors of a layer."""
    return own.contexts if model.router.query_reduce == "pooled" else own.query_tokens


def _small_sums(
    model: ModelConfig, layout: Layout, own: SampleSize, passes: Passes, size: int
) -> int:
    """Bytes of a sample that ranks sum beside the states of all tokens."""
    routers, last = len(model.router_layers), model.last_router_layer
    chunks = own.chunks(model.router.chunk_size)
    found = own.labels * (model.hidden * size + 3 * 4)
    if model.router.decouple:
        found += routers * (_asked(model, own) + chunks) * model.hidden * size
    if model.shape.qk_norm:
        reached = model.layers + passes.groups * (last + 1)
        found += reached * 2 * model.head_dim * size
    if model.router.gate != "none":
        found += len(model.reading_layers) * 4 * _selected(model, own)
    if not layout.sequence:
        return found
    # States that a loss and routers read, which lie on one rank each; gradients of norms.
    found += own.labels * model.hidden * size
    twice = 1 + (layout.recompute != "none")
    if model.router.decouple:
        read = own.query_tokens * size * twice + chunks * 4 * (twice + passes.twice)
        found += routers * read * model.hidden
    norms = 2 * model.layers + 1 + passes.groups * (2 * last + 1)
    return found + norms * model.hidden * size


def _selected(model: ModelConfig, own: SampleSize) -> int:
    """Chunks that all contexts read in a layer."""
    each = own.chunks(model.router.chunk_size) / max(1, own.documents)
    return round(own.contexts * min(model.router.top_k, own.documents) * each)


def _documents(
    model: ModelConfig, layout: Layout, sample: SampleSize, passes: Passes, size: int
) -> Iterator[Traffic]:
    """Pooled keys, values and router keys of a bank: gathered for its contexts, and their gradients
    scattered to the ranks whose documents they are of."""
    if layout.documents == 1 or layout.sharded:
        return
    keys = model.sizes["router_keys"] if model.router.decouple else model.sizes["keys"]
    row = 2 * model.sizes["keys"] * len(model.reading_layers) * size // layout.tensor
    row += 4 * keys * len(model.router_layers)
    payload = passes.samples * sample.chunks(model.router.chunk_size) * row
    ring = layout.documents, layout.tensor
    calls = passes.samples * (2 if size < 4 else 1)  # numbers of each width go together
    yield Traffic("pooled states", "all-gather", payload, *ring, calls=calls)
    yield Traffic("pooled states", "reduce-scatter", payload, *ring, calls=calls)
