"""The router: vectors whose dot product is the chunk score, selection, and the gate.

Mean over heads of cosines is ONE dot product (SPEC section 2, "Exact shortcut"):
    query vector  [T, V]: normalised rq summed over each GQA group, divided by H
    key vector    [C, V]: pooled, then normalised rk, heads side by side
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from msa_kernels import chunk_scores, document_scores, select_chunks, top_documents
from torch import Tensor

from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Routing:
    """What one router layer chose for m contexts.

    documents [m, <=K] best first (-1 where fewer exist); values [m, <=K] their scores;
    chunk_index [S] with index_cu [m+1]: all chunks of the selected documents; chunk_scores [S]
    float32, what the gate weighs (None without gate); document_scores [m, n] float32, -inf outside
    a context's bank (None when a search returned only the best); best_chunks [m, <=K]: which of
    its chunks a selected document scored by (None where nobody asked); query: the query vectors
    scored, packed by query_cu [m+1].
    """

    query: Tensor
    query_cu: Tensor
    documents: Tensor
    values: Tensor
    chunk_index: Tensor
    index_cu: Tensor
    chunk_scores: Tensor | None
    document_scores: Tensor | None = None
    best_chunks: Tensor | None = None

    def pointing_at(self, chunk_index: Tensor) -> Routing:
        """The same routing where the selected chunks lie elsewhere."""
        return replace(self, chunk_index=chunk_index)


def query_vectors(rq: Tensor, kv_heads: int, total_heads: int, router: RouterConfig) -> Tensor:
    """Router queries [T, heads, D] of `kv_heads` GQA groups, ready for scoring.

    [T, kv_heads*D] where scoring is a single dot product, else [T, heads, D]. `total_heads` is H
    of the whole model: under tensor parallelism rq holds a part of the heads.
    """
    rq = _at_least_float32(rq)
    if router.similarity == "cosine":
        rq = F.normalize(rq, dim=-1)
    # As published: raw dot products, and the coupled router, are scaled by D^-1/2.
    plain = router.similarity == "cosine" and router.decouple
    scale = 1.0 if plain else rq.shape[-1] ** -0.5
    if not router.single_product:
        return rq * scale
    return rq.unflatten(1, (kv_heads, -1)).sum(2).flatten(1) * (scale / total_heads)


def key_vectors(rk: Tensor, router: RouterConfig) -> Tensor:
    """[C, kv_heads*D] from chunk-pooled router keys [C, kv_heads, D]."""
    rk = _at_least_float32(rk)
    if router.similarity == "cosine":
        rk = F.normalize(rk, dim=-1)
    return rk.flatten(1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def route(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    ctx_bank: Tensor,
    bank_cu: Tensor,
    router: RouterConfig,
) -> Routing:
    """Score every document of each context's bank, select the best K. Shapes: see Routing."""
    scores = score_documents(query, query_cu, keys, chunk_cu, ctx_bank, bank_cu, router)
    with torch.no_grad():
        values, documents = top_documents(scores, router.top_k)
        index, index_cu = select_chunks(documents, chunk_cu)
    selected = None
    if router.gate != "none":
        selected = gate_scores(query, query_cu, keys, chunk_cu, scores, index, index_cu, router)
    return Routing(query, query_cu, documents, values, index, index_cu, selected, scores)


def score_documents(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    ctx_bank: Tensor,
    bank_cu: Tensor,
    router: RouterConfig,
) -> Tensor:
    """[m, n] float32 document scores, -inf outside the context's bank."""
    if router.single_product:
        return document_scores(query, query_cu, keys, chunk_cu, ctx_bank, bank_cu)
    return per_head_document_scores(query, query_cu, keys, chunk_cu, ctx_bank, bank_cu, router)


def gate_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    scores: Tensor,
    index: Tensor,
    index_cu: Tensor,
    router: RouterConfig,
    rows: Tensor | None = None,
) -> Tensor:
    """[S] the score that gates each selected chunk: its own, or its document's.

    rows [S]: where the chunks' keys stand in `keys`, if those are not all chunks' (None: index).
    """
    if router.gate == "document":
        document = torch.searchsorted(chunk_cu, index, right=True) - 1
        return scores[entry_contexts(index_cu), document]
    return chunk_scores(query, query_cu, keys, index if rows is None else rows, index_cu)


def entry_contexts(index_cu: Tensor) -> Tensor:
    """[S] the context of each selected chunk entry."""
    contexts = torch.arange(len(index_cu) - 1, device=index_cu.device)
    return contexts.repeat_interleave(index_cu.diff())


def gate_bias(
    scores: Tensor,
    index_cu: Tensor,
    gate: Tensor,
    threshold: Tensor,
    documents: Tensor,
    router: RouterConfig,
) -> Tensor:
    """[S] added to the attention logits of each selected chunk (SPEC section 3, "The gate").

    `gate` (g) and `threshold` (theta) [1] are the learned scalars, `documents` [m] the number of
    documents in each context's bank.
    """
    context = entry_contexts(index_cu)
    if router.gate != "threshold":
        best = scores.new_full((len(index_cu) - 1,), -math.inf)
        best = best.scatter_reduce(0, context, scores.detach(), "amax")
        scores = scores - best[context]
    if router.gate_growth:
        growth = documents.clamp(min=1).to(scores.dtype).log() / math.log(router.gate_documents)
        gate = gate * growth.clamp(min=1)[context]
    return gate * (scores - threshold)


def per_head_document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    ctx_bank: Tensor,
    bank_cu: Tensor,
    router: RouterConfig,
) -> Tensor:
    """document_scores for the published reductions that are no single dot product.

    query [T, H, D], keys [C, G*D]; scores per head are materialised and reduced in the published
    order: heads, tokens, chunks. Returns [m, n] float32, -inf outside the bank.
    """
    head_dim = query.shape[-1]
    keys = keys.unflatten(1, (-1, head_dim))
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)
    rows = []
    for context, bank in enumerate(ctx_bank.tolist()):
        row = [query.new_tensor(-math.inf, dtype=torch.float32)] * (len(chunk_cu) - 1)
        q = query[query_cu[context] : query_cu[context + 1]]
        for document in range(int(bank_cu[bank]), int(bank_cu[bank + 1])):
            k = keys[chunk_cu[document] : chunk_cu[document + 1]].to(q.dtype)
            if len(q) and len(k):
                row[document] = _reduce(torch.einsum("thd,chd->htc", q, k).float(), router)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _reduce(scores: Tensor, router: RouterConfig) -> Tensor:
    """Scalar score of a document from per-head scores [H, T, C]."""
    tokens = scores.mean(0) if router.head_reduce == "mean" else scores.amax(0)
    if router.query_reduce == "last":
        chunks = tokens[-1]
    else:
        chunks = tokens.amax(0) if router.query_reduce == "max" else tokens.mean(0)
    return chunks.amax() if router.chunk_reduce == "max" else chunks.mean()
