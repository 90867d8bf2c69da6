"""Routing: which documents a context reads (SPEC section 2, "Exact shortcut").

Scores are one GEMM of query vectors and pooled router keys, tile by tile over the chunks; each
tile is reduced over the context's tokens, then over the document's chunks, before the next is
computed, so that nothing of size tokens x chunks outlives its tile. The gradient of a score
reaches one (token, chunk) only: two indices per (context, document) are saved, backward scatters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.ragged import gather_rows, padded_rows, similar_lengths
from msa_kernels.reference import accumulation_dtype
from msa_kernels.segments import first_place, segment_max

SCRATCH_MB = 64.0
CACHE_BYTES = 8 << 20  # keys and scores of a tile, per thread (measured)
_MB = 1 << 20


@dataclass(frozen=True)
class _Group:
    """Contexts of one bank with query token counts alike: a padded batch of query vectors."""

    contexts: Tensor  # [r]
    rows: Tensor  # [r, t] query rows
    query: Tensor  # [r, t, V] in the score dtype
    documents: tuple[int, int]  # the bank's documents


def _groups(query, query_cu, context_bank, bank_cu, dtype, budget):
    """Padded batches of the contexts that have query tokens, bank by bank."""
    lengths, banks, bounds = query_cu.diff().tolist(), context_bank.tolist(), bank_cu.tolist()
    limit = max(1, int(budget) // (query.shape[1] * dtype.itemsize))
    for bank in sorted(set(banks)):
        if bounds[bank] == bounds[bank + 1]:
            continue
        own = [n if b == bank else 0 for n, b in zip(lengths, banks, strict=True)]
        for members in similar_lengths(own, slack=512, limit=limit):
            contexts = torch.tensor(members, device=query.device)
            rows, _ = padded_rows(query_cu, contexts, max(lengths[c] for c in members))
            part = gather_rows(query, rows, dtype)
            yield _Group(contexts, rows, part, (bounds[bank], bounds[bank + 1]))


def _tile_size(group: _Group, keys: Tensor, budget: float) -> int:
    """Chunks per tile: keys and scores that the cache holds, everything else within the budget."""
    (r, t, width), size = group.query.shape, group.query.element_size()
    cached = r * t * size + width * size
    # Beside scores: maxima and places over tokens (and while doubling), upcast keys.
    scratch = (
        3 * r * t * size
        + r * 8 * (size + 8)
        + (width * size if keys.dtype != group.query.dtype else 0)
    )
    tile = budget / scratch
    if keys.device.type == "cpu":
        tile = min(tile, max(64, CACHE_BYTES * torch.get_num_threads() / cached))
    return max(1, int(tile))


def _search(query, query_cu, keys, chunk_cu, context_bank, bank_cu, budget, with_index):
    """[scores [m, n]] and, with_index, the query row and the chunk [m, n] of each."""
    dtype = accumulation_dtype(query, keys)
    shape = (len(query_cu) - 1, len(chunk_cu) - 1)
    best = [torch.full(shape, -math.inf, dtype=dtype, device=query.device)]
    if with_index:
        best += [torch.zeros(shape, dtype=torch.int64, device=query.device) for _ in range(2)]
    for group in _groups(query, query_cu, context_bank, bank_cu, dtype, budget / 4):
        first, last = group.documents
        if len(group.contexts) == shape[0]:
            _search_bank(group, keys, chunk_cu, budget * 3 / 4, [x[:, first:last] for x in best])
            continue
        part = [x[group.contexts, first:last] for x in best]
        _search_bank(group, keys, chunk_cu, budget * 3 / 4, part)
        for whole, found in zip(best, part, strict=True):
            whole[group.contexts, first:last] = found
    return best


def _search_bank(group: _Group, keys: Tensor, chunk_cu: Tensor, budget: float, best: list) -> None:
    """Folds the scores of a bank's chunks into `best`, [r, documents] each, tile by tile."""
    cu = chunk_cu[group.documents[0] : group.documents[1] + 1]
    begin, end = int(cu[0]), int(cu[-1])
    if begin == end:
        return
    empty = bool((cu.diff() == 0).any())
    bounds = [*range(begin, end, _tile_size(group, keys, budget)), end]
    edges = torch.tensor(bounds, device=cu.device)
    first = (torch.searchsorted(cu, edges[:-1], right=True) - 1).tolist()
    last = torch.searchsorted(cu, edges[1:]).tolist()
    for start, stop, low, high in zip(bounds, bounds[1:], first, last, strict=False):
        edge = cu[low : high + 1].clamp(start, stop) - start
        _search_tile(group, keys[start:stop], start, edge, empty, [x[:, low:high] for x in best])


def _search_tile(
    group: _Group, keys: Tensor, start: int, edge: Tensor, empty: bool, best: list[Tensor]
) -> None:
    """Chunks `keys`, the first of them chunk `start`; document i of the tile ends at edge[i+1]."""
    r, t, width = group.query.shape
    query = group.query.view(r * t, width)
    scores = (query @ keys.to(query.dtype).T).view(r, t, len(keys))
    values = scores.amax(1) if t > 1 else scores[:, 0]
    with_index, present = len(best) > 1, slice(None)
    if empty:
        present = (edge.diff() > 0).nonzero().squeeze(1)
    found, column = segment_max(values, edge[:-1][present], edge.diff()[present], with_index)
    if not with_index:
        best[0][:, present] = torch.maximum(best[0][:, present], found)
        return
    rows = group.rows.gather(1, first_place(scores, values).gather(1, column))
    better = found > best[0][:, present]
    for whole, new in zip(best, (found, rows, column + start), strict=True):
        whole[:, present] = torch.where(better, new, whole[:, present])


def _scatter(
    grad: Tensor, rows: Tensor, chunks: Tensor, query: Tensor, keys: Tensor, budget: float
):
    """Gradients of scores[i] = <query[rows[i]], keys[chunks[i]]> for flat grad, rows, chunks."""
    grad_query = grad.new_zeros(query.shape)
    grad_keys = grad.new_zeros(keys.shape)
    step = max(1, int(budget) // (4 * grad.element_size() * max(1, query.shape[1])))
    for start in range(0, len(grad), step):
        part = slice(start, start + step)
        row, chunk, g = rows[part], chunks[part], grad[part, None]
        grad_query.index_add_(0, row, keys.index_select(0, chunk).to(grad.dtype) * g)
        grad_keys.index_add_(0, chunk, query.index_select(0, row).to(grad.dtype) * g)
    return grad_query.to(query.dtype), grad_keys.to(keys.dtype)


class _DocumentScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, query_cu, keys, chunk_cu, context_bank, bank_cu, budget):
        found = _search(query, query_cu, keys, chunk_cu, context_bank, bank_cu, budget, True)
        ctx.save_for_backward(query, keys, *found[1:], found[0] > -math.inf)
        ctx.budget = budget
        return found[0]

    @staticmethod
    def backward(ctx, grad):
        query, keys, rows, chunks, exists = ctx.saved_tensors
        flat = (x[exists] for x in (grad, rows, chunks))
        d_query, d_keys = _scatter(*flat, query, keys, ctx.budget)
        return d_query, None, d_keys, *[None] * 4


def document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    context_bank: Tensor,
    bank_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Score of every document of each context's bank (SPEC section 2, "chunk score").

    query [N, V] of the contexts' query tokens, query_cu [m+1]; keys [C, V], chunk_cu [n+1];
    context_bank [m]; bank_cu [b+1] documents per bank -> [m, n] float32 (float64 for float64): the
    maximum of <query, key> over the context's query tokens and the document's chunks. -inf outside
    the context's bank, for documents without chunks and contexts without query tokens. Query and
    keys may be of any floating dtype. The gradient goes to the arg-max (token, chunk) alone, among
    equals to the first chunk and its first token. scratch_mb bounds what is held beside arguments
    and result. Raises KernelError for tensors that do not fit together.
    """
    _check("document_scores", query, query_cu, keys)
    dispatch.check_cumulative("document_scores", "chunk_cu", chunk_cu, len(keys))
    dispatch.check_cumulative("document_scores", "bank_cu", bank_cu, len(chunk_cu) - 1)
    given = (query, query_cu, keys, chunk_cu, context_bank, bank_cu, scratch_mb * _MB)
    with dispatch.exact(query.device):
        if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad):
            return _DocumentScores.apply(*given)
        return _search(*given, with_index=False)[0]


class _ChunkScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, query_cu, keys, index, index_cu, budget):
        scores, rows = _selected(query, query_cu, keys, index, index_cu, budget)
        ctx.save_for_backward(query, keys, rows, index, scores > -math.inf)
        ctx.budget = budget
        return scores

    @staticmethod
    def backward(ctx, grad):
        query, keys, rows, index, exists = ctx.saved_tensors
        flat = (x[exists] for x in (grad, rows, index))
        d_query, d_keys = _scatter(*flat, query, keys, ctx.budget)
        return d_query, None, d_keys, None, None, None


def _selected(query, query_cu, keys, index, index_cu, budget):
    """(scores [S], query row [S] of each maximum)."""
    dtype = accumulation_dtype(query, keys)
    scores = torch.full((len(index),), -math.inf, dtype=dtype, device=query.device)
    places = torch.zeros_like(index)
    tokens, entries = query_cu.diff().tolist(), index_cu.diff().tolist()
    lengths = [t + s if t and s else 0 for t, s in zip(tokens, entries, strict=True)]
    limit = max(1, int(budget / (4 * keys.shape[1] * dtype.itemsize)))
    for members in similar_lengths(lengths, slack=2048, limit=limit):
        contexts = torch.tensor(members, device=query.device)
        rows, _ = padded_rows(query_cu, contexts, max(tokens[c] for c in members))
        slots, real = padded_rows(index_cu, contexts, max(entries[c] for c in members))
        part = gather_rows(query, rows, dtype) @ gather_rows(keys, index[slots], dtype).mT
        best = part.amax(1)
        scores[slots[real]] = best[real]
        places[slots[real]] = rows.gather(1, first_place(part, best))[real]
    return scores, places


def chunk_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    index: Tensor,
    index_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Scores of selected chunks, which the gate weighs (SPEC section 3, "The gate").

    query [N, V], query_cu [m+1]; keys [C, V]; index [S] chunks, index_cu [m+1] entries per context
    -> [S] float32 (float64 for float64): the maximum over the context's query tokens of
    <query, keys[index]>; -inf for a context without query tokens. Gradient, dtypes, scratch_mb and
    errors as for document_scores.
    """
    _check("chunk_scores", query, query_cu, keys)
    dispatch.check_cumulative("chunk_scores", "index_cu", index_cu, len(index))
    with dispatch.exact(query.device):
        return _ChunkScores.apply(query, query_cu, keys, index, index_cu, scratch_mb * _MB)


def _check(operation: str, query: Tensor, query_cu: Tensor, keys: Tensor) -> None:
    dispatch.check_floating(operation, query=query, keys=keys)
    dispatch.check_cumulative(operation, "query_cu", query_cu, len(query))
    if query.dim() != 2 or keys.dim() != 2 or query.shape[1] != keys.shape[1]:
        shapes = tuple(query.shape), tuple(keys.shape)
        raise KernelError(f"{operation}: query and keys have shapes {shapes}; need [N, V], [C, V]")
