"""One attention layer over both streams: the same functions for training and serving.

The training module and the serving module differ in where q, k, v come from (tensor-parallel
projections or plain ones) and where the memory lies (in the batch, or in a bank); what is computed
from them is here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from msa_kernels import chunk_mean, context_attention, document_attention
from torch import Tensor

from msa_train.model.batch import Layout
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, gate_bias, key_vectors, query_vectors, route


@dataclass(frozen=True)
class Pooled:
    """Chunk means of a set of documents in one router layer: all that the memory keeps."""

    k: Tensor  # [C, G, D] of normed and rotated keys
    v: Tensor  # [C, G, D]
    key: Tensor  # [C, G*D] router key vectors


@dataclass(frozen=True)
class Projections:
    """q, k (normed, rotated), v of packed tokens; rq, rk of a router layer with own projections."""

    q: Tensor  # [N, H, D]
    k: Tensor  # [N, G, D]
    v: Tensor  # [N, G, D]
    rq: Tensor | None = None  # [N, H, D]
    rk: Tensor | None = None  # [N, G, D]

    def part(self, rows: slice) -> Projections:
        cut = (x if x is None else x[rows] for x in (self.q, self.k, self.v, self.rq, self.rk))
        return Projections(*cut)


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


def pool_documents(
    documents: Projections, doc_cu: Tensor, router: RouterConfig, group: HeadGroup
) -> Pooled:
    """Chunk means of document projections [Nd, ...] (SPEC section 2, "chunks")."""
    k = chunk_mean(documents.k, doc_cu, router.chunk_size)
    v = chunk_mean(documents.v, doc_cu, router.chunk_size)
    rk = chunk_mean(documents.rk, doc_cu, router.chunk_size) if router.decouple else k
    return Pooled(k, v, group.gather(key_vectors(rk, router)))


def router_query(
    contexts: Projections, rows: Tensor, router: RouterConfig, group: HeadGroup
) -> Tensor:
    """Query vectors of the query tokens `rows` of the active stream."""
    rq = (contexts.rq if router.decouple else contexts.q)[rows]
    return group.gather(query_vectors(rq, contexts.k.shape[1], group.heads, router))


@dataclass(frozen=True)
class Reading:
    """What the contexts of a router layer read: routing, and the states its indices point into."""

    routing: Routing
    k: Tensor  # [C, G, D]
    v: Tensor  # [C, G, D]
    bank_sizes: Tensor  # [m] documents in each context's bank
    bias: Tensor | None  # [S] the gate's addition to the attention logits


def read_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_cu: Tensor,
    k_cu: Tensor,
    memory_from: Tensor,
    memory: Reading,
) -> Tensor:
    """Contexts attend to the selected chunks and to their own earlier tokens. [Nq, H, D]."""
    routing, scale = memory.routing, q.shape[-1] ** -0.5
    return context_attention(
        q, k, v, q_cu, k_cu, memory.k, memory.v, routing.chunk_index, routing.index_cu,
        memory.bias, memory_from, scale,
    )  # fmt: skip


def reading(
    routing: Routing,
    k: Tensor,
    v: Tensor,
    bank_sizes: Tensor,
    gate: Gate | None,
    router: RouterConfig,
    group: HeadGroup,
) -> Reading:
    """A Reading with its gate bias; `gate` None as published."""
    bias = None
    if gate is not None:
        bias = group.spread(
            gate_bias(
                routing.chunk_scores,
                routing.index_cu,
                gate.sharpness,
                gate.threshold,
                bank_sizes,
                router,
            )
        )
    return Reading(routing, k, v, bank_sizes, bias)


def plain_layer(x: Projections, layout: Layout) -> Tensor:
    """Attention of a layer without router: documents alone, contexts alone. [N, H, D]."""
    scale, nd = x.q.shape[-1] ** -0.5, layout.doc_token_count
    documents, contexts = x.part(slice(nd)), x.part(slice(nd, None))
    return torch.cat(
        [
            document_attention(documents.q, documents.k, documents.v, layout.doc_cu, scale),
            document_attention(contexts.q, contexts.k, contexts.v, layout.ctx_cu, scale),
        ]
    )


def router_layer(
    x: Projections,
    layout: Layout,
    gate: Gate | None,
    router: RouterConfig,
    group: HeadGroup,
    contexts_only: bool = False,
) -> tuple[Tensor, Routing, Pooled]:
    """Attention of a router layer (SPEC section 2).

    Returns the attended states [N, H, D], or [Na, H, D] with `contexts_only` (the last layer,
    where a document needs only what is pooled of it), the routing, and the pooled memory.
    """
    scale, nd = x.q.shape[-1] ** -0.5, layout.doc_token_count
    documents, contexts = x.part(slice(nd)), x.part(slice(nd, None))
    pooled = pool_documents(documents, layout.doc_cu, router, group)
    query = router_query(contexts, layout.query_index, router, group)
    routing = route(
        query, layout.query_cu, pooled.key, layout.chunk_cu, layout.ctx_bank, layout.bank_cu, router
    )
    bank_sizes = layout.bank_cu.diff()[layout.ctx_bank]
    memory = reading(routing, pooled.k, pooled.v, bank_sizes, gate, router, group)
    cu = layout.ctx_cu
    read = read_memory(contexts.q, contexts.k, contexts.v, cu, cu, layout.memory_from, memory)
    if contexts_only:
        return read, routing, pooled
    alone = document_attention(documents.q, documents.k, documents.v, layout.doc_cu, scale)
    return torch.cat([alone, read]), routing, pooled
