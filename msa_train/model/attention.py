"""One attention layer over both streams: the same functions for training and serving.

The training module and the serving module differ in where q, k, v come from (tensor-parallel
projections or plain ones) and where the memory lies (in the batch, or in a bank); what is computed
from them is here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from msa_kernels import chunk_mean, context_attention, document_attention
from torch import Tensor

from msa_train.model.batch import StreamLayout
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, route

if TYPE_CHECKING:  # training's; serving does not load process groups
    from msa_train.model.sharded import ShardedBank


@dataclass(frozen=True)
class Pooled:
    """Chunk means of a set of documents in one router layer: all that the memory keeps.

    A layer that only votes has no heads to read: k and v are [C, 0, D].
    """

    k: Tensor  # [C, G, D] of normed and rotated keys
    v: Tensor  # [C, G, D]
    key: Tensor  # [C, V] router key vectors

    def map(self, change: Callable[[Tensor], Tensor]) -> Pooled:
        """The same of each state: another dtype or device, some rows."""
        return Pooled(change(self.k), change(self.v), change(self.key))

    @staticmethod
    def joined(parts: Sequence[Pooled]) -> Pooled:
        """The chunks of all parts, one part after another."""
        states = zip(*((part.k, part.v, part.key) for part in parts), strict=True)
        return Pooled(*map(torch.cat, states))


@dataclass(frozen=True)
class Projections:
    """q, k (normed, rotated) and v of packed tokens."""

    q: Tensor  # [N, H, D]
    k: Tensor  # [N, G, D]
    v: Tensor  # [N, G, D]

    def part(self, rows: slice) -> Projections:
        return Projections(self.q[rows], self.k[rows], self.v[rows])


@dataclass(frozen=True)
class Gate:
    """The learned scalars of a router layer's gate, [1] each."""

    sharpness: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class HeadGroup:
    """How a tensor-parallel rank's part of the heads becomes the whole, and back.

    gather: [rows, local V] -> [rows, V] of all ranks; its backward takes this rank's part, because
    what follows is computed alike on every rank. spread: the identity, whose backward sums the
    gradients that the ranks' heads send to a common tensor.
    """

    heads: int  # H of the whole model
    gather: Callable[[Tensor], Tensor] = lambda x: x
    spread: Callable[[Tensor], Tensor] = lambda x: x


Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Router:
    """The router of one layer.

    queries: normed states [T, d] -> [T, query heads, D]; keys: -> [T, key heads, D], in the
    router's own shape; both None where q and pooled k route themselves. gate None: as published.
    key_heads: of this rank. reads: contexts attend to what was found; otherwise it is a vote only.
    mean: chunk_mean of normed states, which are split over ranks under sequence parallelism; they
    are then indexed as the whole would be (msa_train.parallel.sequence).
    """

    settings: RouterConfig
    group: HeadGroup
    gate: Gate | None
    queries: Project | None
    keys: Project | None
    key_heads: int
    reads: bool = True
    mean: Callable[..., Tensor] = chunk_mean


def pool_documents(
    h: Tensor,
    documents: Projections,
    doc_cu: Tensor,
    router: Router,
    token_cu: Tensor | None = None,
) -> Pooled:
    """Chunk means of documents: normed states h [Nd, d] and their projections (SPEC section 2).

    A router key has neither norm nor rotation, so the mean of projections is the projection of the
    mean: one row per chunk is projected, not one per token. token_cu [C+1]: as in chunk_mean.
    """
    chunks = doc_cu, router.settings.chunk_size, token_cu
    means = chunk_mean(documents.k, *chunks) if router.keys is None else router.mean(h, *chunks)
    rk = means if router.keys is None else router.keys(means)
    key = router.group.gather(router.settings.scoring.key_vectors(rk))
    if not router.reads:
        nothing = documents.k.new_empty(len(key), 0, documents.k.shape[2])
        return Pooled(nothing, nothing, key)
    k = means if router.keys is None else chunk_mean(documents.k, *chunks)
    return Pooled(k, chunk_mean(documents.v, *chunks), key)


def router_query(
    h: Tensor,
    contexts: Projections,
    rows: Tensor,
    query_cu: Tensor,
    router: Router,
    asking: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Query vectors and how many of them each context has (cumulative, [m+1]).

    Of the query tokens `rows` of the active stream, packed by query_cu; normed states h [Na, d].
    asking [m']: as in Scoring.pool_tokens.
    """
    scoring = router.settings.scoring
    if router.queries is None:
        states, query_cu = scoring.pool_tokens(contexts.q[rows].flatten(1), query_cu, asking)
        rq = states.unflatten(1, (-1, contexts.q.shape[2]))
    else:
        states, query_cu = scoring.pool_tokens(h[rows], query_cu, asking)
        rq = router.queries(states)
    vectors, query_cu = scoring.query_vectors(rq, query_cu, router.key_heads, router.group.heads)
    return router.group.gather(vectors), query_cu


@dataclass(frozen=True)
class SelectedChunks:
    """What the contexts of a router layer attend to: routing, and the states it points into."""

    routing: Routing
    k: Tensor  # [C, G, D]
    v: Tensor  # [C, G, D]
    bias: Tensor | None  # [S] the gate's addition to the attention logits
    read: bool = True  # false: found for the vote alone

    @classmethod
    def of(cls, routing: Routing, k: Tensor, v: Tensor, router: Router) -> SelectedChunks:
        """With the gate's bias (SPEC section 3, "The gate")."""
        bias = None
        if router.gate is not None:
            bias = router.gate.sharpness * (routing.chunk_scores - router.gate.threshold)
            bias = router.group.spread(bias)
        return cls(routing, k, v, bias, router.reads)


def context_with_memory(
    x: Projections, cu: Tensor, memory_from: Tensor, selected: SelectedChunks
) -> Tensor:
    """Contexts attend to their selected chunks and to their own earlier tokens. [Na, H, D]."""
    if not selected.read:
        return self_attention(x, cu)
    routing, scale = selected.routing, x.q.shape[-1] ** -0.5
    return context_attention(
        x.q, x.k, x.v, cu, cu, selected.k, selected.v, routing.chunk_index, routing.index_cu,
        selected.bias, memory_from, scale,
    )  # fmt: skip


def self_attention_layer(x: Projections, layout: StreamLayout) -> Tensor:
    """Attention of a layer without router: each document and context to itself. [N, H, D].

    Behind the last router layer x are the contexts alone.
    """
    if len(x.q) < len(layout.positions):
        return self_attention(x, layout.ctx_cu)
    nd = layout.doc_token_count
    documents, contexts = x.part(slice(nd)), x.part(slice(nd, None))
    own = self_attention(documents, layout.doc_cu), self_attention(contexts, layout.ctx_cu)
    return torch.cat(own)


def self_attention(x: Projections, cu: Tensor) -> Tensor:
    """Packed sequences attend causally to themselves. [N, H, D]."""
    if not len(x.q):
        return x.q
    return document_attention(x.q, x.k, x.v, cu, x.q.shape[-1] ** -0.5)


def context_layer(
    h: Tensor,
    x: Projections,
    layout: StreamLayout,
    router: Router,
    pooled: Pooled,
    sharded: ShardedBank | None = None,
) -> tuple[Tensor, Routing]:
    """Contexts [Na] of a router layer search pooled documents and attend to the best.

    sharded: where the documents of all ranks lie, if `pooled` are this rank's alone. Returns the
    attended states [Na, H, D] and the routing.
    """
    query = router_query(h, x, layout.query_index, layout.query_cu, router, layout.asking)
    if sharded is None:
        routing = route(
            *query, pooled.key, layout.chunk_cu, layout.ctx_bank, layout.bank_cu, router.settings
        )
        selected = SelectedChunks.of(routing, pooled.k, pooled.v, router)
    else:
        routing = sharded.route(*query, pooled.key, router.settings)
        selected = _fetched(routing, pooled, router, sharded)
    return context_with_memory(x, layout.ctx_cu, layout.memory_from, selected), routing


def _fetched(
    routing: Routing, pooled: Pooled, router: Router, sharded: ShardedBank
) -> SelectedChunks:
    """What was found in all ranks' pooled states, of which `pooled` are this rank's."""
    if not router.reads:
        return SelectedChunks(routing, pooled.k, pooled.v, None, read=False)
    states = [pooled.k, pooled.v] + [pooled.key] * (router.gate is not None)
    places, (k, v, *keys) = sharded.fetch(routing.chunk_index, states)
    found = replace(routing, chunk_index=places)
    if keys:
        given = found.query, found.query_cu, *keys, places, found.index_cu
        found = replace(found, chunk_scores=router.settings.scoring.chunk_scores(*given))
    return SelectedChunks.of(found, k, v, router)


def router_layer(
    h: Tensor, x: Projections, layout: StreamLayout, router: Router, contexts_only: bool = False
) -> tuple[Tensor, Routing, Pooled]:
    """Attention of a router layer (SPEC section 2): normed states h [N, d], their projections x.

    Returns the attended states [N, H, D], or [Na, H, D] with `contexts_only` (the last router
    layer, where a document needs only what is pooled of it), the routing, and the pooled memory.
    """
    nd = layout.doc_token_count
    documents, contexts = x.part(slice(nd)), x.part(slice(nd, None))
    pooled = pool_documents(h[:nd], documents, layout.doc_cu, router, layout.token_cu)
    attended, routing = context_layer(h[nd:], contexts, layout, router, pooled)
    if contexts_only:
        return attended, routing, pooled
    return torch.cat([self_attention(documents, layout.doc_cu), attended]), routing, pooled
