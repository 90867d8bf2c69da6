"""FLOPs of a sample, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from msa_train.model.config import ModelConfig
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.sizes import SampleSize

# A backward pass is two products for each; that of attention computes the logits once more.
_BACKWARD, _ATTENTION_BACKWARD = 2.0, 2.5


@dataclass(frozen=True)
class StepWork:
    """FLOPs. documents, contexts: forward and backward. recompute: once more in the backward pass.
    cache: documents encoded a second time, by the gradient cache or for ZeRO-3. attention: those of
    the above that are attention's own products, and scores of routers."""

    documents: float
    contexts: float
    recompute: float
    cache: float
    attention: float

    @property
    def useful(self) -> float:
        """What the mathematics asks for (the numerator of a model's FLOPs utilisation)."""
        return self.documents + self.contexts

    @property
    def total(self) -> float:
        return self.useful + self.recompute + self.cache

    def times(self, factor: float) -> StepWork:
        return StepWork(*(factor * value for value in vars(self).values()))


@dataclass(frozen=True)
class Forward:
    """FLOPs of a forward pass over one stream: products with the weights of attention's part of the
    layers, of their feed-forward part and of the head, and attention's own. scores: of routers,
    whose backward pass is sparse."""

    projections: float
    feed_forward: float
    attention: float
    head: float = 0.0
    scores: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    @property
    def trained(self) -> float:
        """With the backward pass."""
        products = (1 + _BACKWARD) * (self.projections + self.feed_forward + self.head)
        return products + (1 + _ATTENTION_BACKWARD) * self.attention + self.scores


def work(model: ModelConfig, layout: Layout, sample: SampleSize) -> StepWork:
    """Of a whole sample, on all ranks that share it together."""
    documents, contexts = documents_forward(model, sample), contexts_forward(model, sample)
    again = layout.passes(sample.share(layout.documents).document_tokens).twice
    attention, twice = 0.0, layout.recompute != "none"
    for stream, encoded_twice in ((documents, again), (contexts, False)):
        passes = 1 + _ATTENTION_BACKWARD + twice + encoded_twice
        attention += passes * stream.attention + (1 + twice) * stream.scores
    return StepWork(
        documents.trained,
        contexts.trained,
        _again(layout, documents) + _again(layout, contexts),
        documents.total if again else 0.0,
        attention,
    )


def _again(layout: Layout, stream: Forward) -> float:
    """What recomputation computes once more of a stream."""
    part = stream.projections + stream.attention + stream.scores
    return {"none": 0.0, "attention": part, "layer": part + stream.feed_forward}[layout.recompute]


def documents_forward(model: ModelConfig, sample: SampleSize) -> Forward:
    """Documents go through the layers below the last router layer, and leave keys and values of
    that one."""
    tokens, last = sample.document_tokens, model.last_router_layer
    qkv, out, feed = _per_token(model)
    each = tokens / max(1, sample.documents)
    pairs = tokens * (each + 1) / 2
    keys = 0.0
    if model.router.decouple:
        rows = sample.chunks(model.router.chunk_size) * len(model.router_layers)
        keys = 2 * rows * model.hidden * model.sizes["router_keys"]
    projections = tokens * (qkv * (last + 1) + out * last) + keys
    return Forward(projections, tokens * feed * last, 4 * model.sizes["queries"] * pairs * last)


def contexts_forward(model: ModelConfig, sample: SampleSize) -> Forward:
    """Contexts go through all layers, search in the router layers and read in some; the head is
    multiplied with tokens that are written."""
    tokens, sizes = sample.context_tokens, model.sizes
    qkv, out, feed = _per_token(model)
    each = tokens / max(1, sample.contexts)
    own = tokens * (each + 1) / 2 * model.layers
    chunks = sample.chunks(model.router.chunk_size)
    read = min(model.router.top_k, sample.documents) * chunks / max(1, sample.documents)
    pairs = own + tokens * read * len(model.reading_layers)
    asked = sample.contexts if model.router.query_reduce == "pooled" else sample.query_tokens
    routers = len(model.router_layers)
    queries = 2 * asked * model.hidden * sizes["router_queries"] * routers
    scores = 2 * asked * chunks * sizes["router_keys"] * routers
    head = 2 * sample.labels * model.hidden * model.vocab_size
    projections = tokens * (qkv + out) * model.layers + queries * model.router.decouple
    fed = tokens * feed * model.layers
    return Forward(projections, fed, 4 * sizes["queries"] * pairs, head, scores)


def _per_token(model: ModelConfig) -> tuple[int, int, int]:
    """FLOPs of a token in a layer: to q, k and v, out of attention, feed-forward."""
    queries, keys = model.sizes["queries"], model.sizes["keys"]
    qkv = 2 * model.hidden * (queries + 2 * keys)
    return qkv, 2 * model.hidden * queries, 6 * model.hidden * model.ffn
