"""Scores of documents and of chunks (SPEC section 2, "Exact shortcut").

Scores are one GEMM of query vectors and pooled router keys, tile by tile; each tile is reduced over
the context's tokens, then over the document's chunks, before the next is computed, so that nothing
of size tokens x chunks outlives its tile. The gradient of a score reaches one (token, chunk) only:
two indices are saved, and backward sums what meets each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.ragged import padded_rows, similar_lengths
from msa_kernels.reference import accumulation_dtype

SCRATCH_MB = 64.0
CACHE_BYTES = 8 << 20  # keys and scores of a tile in torch, per thread (measured)
_MB = 1 << 20

# In torch.


@dataclass(frozen=True)
class TiledKeys:
    """Keys [C, V] that are read a tile at a time, as tensors of any floating dtype.

    dtype: that of their scores. copies: whether a tile is a copy.
    """

    read: Callable[[slice], Tensor]
    dtype: torch.dtype
    copies: bool

    @classmethod
    def of(cls, query: Tensor, keys: Tensor) -> TiledKeys:
        dtype = accumulation_dtype(query, keys)
        return cls(keys.__getitem__, dtype, keys.dtype != dtype)


@dataclass(frozen=True)
class _BankQueries:
    """Contexts of one bank with similar counts of query tokens: a padded batch of vectors."""

    contexts: Tensor  # [r]
    rows: Tensor  # [r, t] query rows
    vectors: Tensor  # [r, t, V] in the score dtype
    documents: tuple[int, int]  # the bank's documents


def _bank_queries(
    query: Tensor, query_cu: Tensor, context_bank: Tensor, bank_cu: Tensor, dtype: torch.dtype,
    budget: float,
) -> Iterator[_BankQueries]:  # fmt: skip
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
            part = _gather_rows(query, rows, dtype)
            yield _BankQueries(contexts, rows, part, (bounds[bank], bounds[bank + 1]))


def _tile_size(queries: _BankQueries, keys: TiledKeys, budget: float) -> int:
    """Chunks per tile: keys and scores that the cache holds, everything else within the budget."""
    (r, t, width), size = queries.vectors.shape, queries.vectors.element_size()
    cached = r * t * size + width * size
    # Beside scores: maxima and places over tokens (and while doubling), upcast keys.
    scratch = 3 * r * t * size + r * 8 * (size + 8) + (2 * width * size if keys.copies else 0)
    tile = budget / scratch
    if queries.vectors.device.type == "cpu":
        tile = min(tile, max(64, CACHE_BYTES * torch.get_num_threads() / cached))
    return max(1, int(tile))


def document_scores_in_torch(
    query: Tensor, query_cu: Tensor, keys: TiledKeys, chunk_cu: Tensor, context_bank: Tensor,
    bank_cu: Tensor, budget: float, with_index: bool,
) -> list[Tensor]:  # fmt: skip
    """Scores [m, n] and, with_index, the query row and the chunk [m, n] of each. budget: bytes."""
    dtype = keys.dtype
    shape = (len(query_cu) - 1, len(chunk_cu) - 1)
    best = [torch.full(shape, -math.inf, dtype=dtype, device=query.device)]
    if with_index:
        best += [torch.zeros(shape, dtype=torch.int64, device=query.device) for _ in range(2)]
    for queries in _bank_queries(query, query_cu, context_bank, bank_cu, dtype, budget / 4):
        columns, every = slice(*queries.documents), len(queries.contexts) == shape[0]
        part = [x[:, columns] if every else x[queries.contexts, columns] for x in best]
        _search_bank(queries, keys, chunk_cu, budget * 3 / 4, part)
        if not every:  # then these are copies
            for whole, found in zip(best, part, strict=True):
                whole[queries.contexts, columns] = found
    return best


def _search_bank(
    queries: _BankQueries, keys: TiledKeys, chunk_cu: Tensor, budget: float, best: list[Tensor]
) -> None:
    """Folds the scores of a bank's chunks into `best`, [r, documents] each, tile by tile."""
    cu = chunk_cu[queries.documents[0] : queries.documents[1] + 1]
    begin, end = int(cu[0]), int(cu[-1])
    if begin == end:
        return
    empty = bool((cu.diff() == 0).any())
    bounds = [*range(begin, end, _tile_size(queries, keys, budget)), end]
    edges = torch.tensor(bounds, device=cu.device)
    first = (torch.searchsorted(cu, edges[:-1], right=True) - 1).tolist()
    last = torch.searchsorted(cu, edges[1:]).tolist()
    for start, stop, low, high in zip(bounds, bounds[1:], first, last, strict=False):
        edge = cu[low : high + 1].clamp(start, stop) - start
        tile = keys.read(slice(start, stop))
        _search_tile(queries, tile, start, edge, empty, [x[:, low:high] for x in best])


def _search_tile(
    queries: _BankQueries, keys: Tensor, start: int, edge: Tensor, empty: bool, best: list[Tensor]
) -> None:
    """Chunks `keys`, the first of them chunk `start`; document i of the tile ends at edge[i+1]."""
    r, t, width = queries.vectors.shape
    query = queries.vectors.view(r * t, width)
    scores = (query @ keys.to(query.dtype).T).view(r, t, len(keys))
    values = scores.amax(1) if t > 1 else scores[:, 0]
    with_index, present = len(best) > 1, slice(None)
    if empty:
        present = (edge.diff() > 0).nonzero().squeeze(1)
    found, column = segment_max(values, edge[:-1][present], edge.diff()[present], with_index)
    if not with_index:
        best[0][:, present] = torch.maximum(best[0][:, present], found)
        return
    rows = queries.rows.gather(1, first_place(scores, values).gather(1, column))
    better = found > best[0][:, present]
    for whole, new in zip(best, (found, rows, column + start), strict=True):
        whole[:, present] = torch.where(better, new, whole[:, present])


def _chunk_scores_in_torch(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor, budget: float
) -> tuple[Tensor, Tensor]:
    """(scores [S], query row [S] of each maximum). budget: bytes."""
    dtype = accumulation_dtype(query, keys)
    if len(query_cu) == 2 and len(query) and len(index):  # one context: nothing to pad
        part = query.to(dtype) @ keys.index_select(0, index).to(dtype).T
        if len(part) == 1:
            return part[0], torch.zeros_like(index)
        best = part.amax(0)
        return best, first_place(part[None], best[None])[0]
    scores = torch.full((len(index),), -math.inf, dtype=dtype, device=query.device)
    places = torch.zeros_like(index)
    tokens, entries = query_cu.diff().tolist(), index_cu.diff().tolist()
    lengths = [t + s if t and s else 0 for t, s in zip(tokens, entries, strict=True)]
    limit = max(1, int(budget / (4 * keys.shape[1] * dtype.itemsize)))
    for members in similar_lengths(lengths, slack=2048, limit=limit):
        contexts = torch.tensor(members, device=query.device)
        rows, _ = padded_rows(query_cu, contexts, max(tokens[c] for c in members))
        slots, real = padded_rows(index_cu, contexts, max(entries[c] for c in members))
        part = _gather_rows(query, rows, dtype) @ _gather_rows(keys, index[slots], dtype).mT
        best = part.amax(1)
        scores[slots[real]] = best[real]
        places[slots[real]] = rows.gather(1, first_place(part, best))[real]
    return scores, places


def _weighted_sums(
    source: Tensor, rows: Tensor, weights: Tensor, targets: Tensor, count: int
) -> Tensor:
    """[count, V] sums of weights[i] * source[rows[i]] over the i of a target, in their order.

    Every sum is written once, and no rows are copied but narrow ones, to be widened.
    """
    targets, order = targets.sort(stable=True)
    bounds = torch.searchsorted(targets, torch.arange(count + 1, device=targets.device))
    rows = rows[order]
    if source.dtype != weights.dtype:
        rows, source = torch.arange(len(rows)), source.index_select(0, rows).to(weights.dtype)
    return F.embedding_bag(
        rows, source, bounds, mode="sum", per_sample_weights=weights[order],
        include_last_offset=True,
    )  # fmt: skip


def _gather_rows(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """x[rows]: [N, V] gathered at [r, t]; index_select is several times faster than indexing."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1).to(dtype)


def segment_max(
    values: Tensor, starts: Tensor, lengths: Tensor, with_index: bool
) -> tuple[Tensor, Tensor | None]:
    """Maxima of values[:, starts[i] : starts[i] + lengths[i]] and, on demand, their columns.

    values [r, c]; starts, lengths [s], every length at least 1 -> [r, s], and [r, s] int64 column
    of the first maximum. Neither pads nor sorts. Doubling: after level j, column i holds the
    maximum of 2^j columns from i; a segment is the union of two such windows, so that the work is
    c * log2(longest segment).
    """
    place = None
    if with_index:
        place = torch.arange(values.shape[1], device=values.device).expand_as(values)
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest == 1:
        if len(starts) == values.shape[1]:
            return values, place
        return values[:, starts], None if place is None else place[:, starts]
    out = values.new_empty(len(values), len(starts))
    index = None if place is None else place.new_empty(out.shape)
    window = 1
    while window <= longest:
        if 2 * window > shortest:
            own = ((lengths >= window) & (lengths < 2 * window)).nonzero().squeeze(1)
            first = starts[own]
            second = first + lengths[own] - window
            best, at = _larger(values, place, first, second)
            out[:, own] = best
            if index is not None:
                index[:, own] = at
        window *= 2
        if window <= longest:
            half = window // 2
            values, place = _larger(values, place, slice(None, -half), slice(half, None))
    return out, index


def _larger(
    values: Tensor, place: Tensor | None, first: Tensor | slice, second: Tensor | slice
) -> tuple[Tensor, Tensor | None]:
    """Columns `first` or `second`, whichever is larger; `first` among equals."""
    a, b = values[:, first], values[:, second]
    if place is None:
        return torch.maximum(a, b), None
    return torch.maximum(a, b), torch.where(b > a, place[:, second], place[:, first])


def first_place(scores: Tensor, values: Tensor) -> Tensor:
    """[r, c] the first place on axis 1 of scores [r, t, c] that reaches values [r, c]."""
    t = scores.shape[1]
    places = torch.arange(t, dtype=torch.int32, device=scores.device)[:, None]
    return torch.where(scores == values[:, None], places, t - 1).amin(1).long()


# The operators and their gradients.


def _one_dtype(query: Tensor, keys: Tensor) -> Tensor:
    """The query as the Triton kernels take it: in the dtype of the keys, or in float32."""
    return query if query.dtype == keys.dtype else query.float()


@dispatch.operator("document_scores")
def _document_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, chunk_cu: Tensor, context_bank: Tensor,
    bank_cu: Tensor, budget: float, with_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scores [m, n] and, with_index, the query row and chunk of each ([0, 0] without)."""
    if dispatch.takes_triton("document_scores", query, keys):
        from msa_kernels import scores_triton

        found = scores_triton.document_scores(
            _one_dtype(query, keys), query_cu, keys, None, chunk_cu, context_bank, bank_cu,
            with_index,
        )  # fmt: skip
    else:
        tiled = TiledKeys.of(query, keys)
        found = document_scores_in_torch(
            query, query_cu, tiled, chunk_cu, context_bank, bank_cu, budget, with_index
        )
    if with_index:
        return tuple(found)
    return found[0], query_cu.new_empty(0, 0), query_cu.new_empty(0, 0)


@torch.library.register_fake(_document_scores)
def _(query, query_cu, keys, chunk_cu, context_bank, bank_cu, budget, with_index):
    shape = query_cu.shape[0] - 1, chunk_cu.shape[0] - 1
    index = [query_cu.new_empty(shape if with_index else (0, 0)) for _ in range(2)]
    return query.new_empty(shape, dtype=accumulation_dtype(query, keys)), *index


def _save_documents(ctx, inputs, output):
    query, query_cu, keys, _, context_bank, bank_cu, *_ = inputs
    ctx.save_for_backward(query, query_cu, keys, context_bank, bank_cu, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_documents(ctx, grad, *_):
    query, query_cu, keys, context_bank, bank_cu, scores, rows, chunks = ctx.saved_tensors
    missing = scores == -torch.inf
    rows, chunks = (x.masked_fill(missing, -1).flatten() for x in (rows, chunks))
    first = torch.arange(len(scores), device=scores.device) * scores.shape[1]
    span = first + bank_cu[context_bank], first + bank_cu[context_bank + 1]
    flat = grad.flatten()
    d_query, d_keys = _scatter(flat, rows, chunks, *span, query, query_cu, keys)
    return d_query, None, d_keys, *[None] * 5


torch.library.register_autograd(
    _document_scores, _differentiate_documents, setup_context=_save_documents
)


@dispatch.operator("entry_scores")
def _chunk_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor, budget: float
) -> tuple[Tensor, Tensor]:
    """Scores [S] and the query row of each."""
    if dispatch.takes_triton("chunk_scores", query, keys):
        from msa_kernels import scores_triton

        query = _one_dtype(query, keys)
        return scores_triton.chunk_scores(query, query_cu, keys, index, index_cu)
    return _chunk_scores_in_torch(query, query_cu, keys, index, index_cu, budget)


@torch.library.register_fake(_chunk_scores)
def _(query, query_cu, keys, index, index_cu, budget):
    scores = query.new_empty(index.shape[0], dtype=accumulation_dtype(query, keys))
    return scores, torch.empty_like(index)


def _save_chunks(ctx, inputs, output):
    query, query_cu, keys, index, index_cu, _ = inputs
    ctx.save_for_backward(query, query_cu, keys, index, index_cu, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_chunks(ctx, grad, _):
    query, query_cu, keys, index, index_cu, scores, rows = ctx.saved_tensors
    rows, chunks = (x.masked_fill(scores == -torch.inf, -1) for x in (rows, index))
    given = (grad, rows, chunks, index_cu[:-1].clone(), index_cu[1:].clone())
    d_query, d_keys = _scatter(*given, query, query_cu, keys)
    return d_query, None, d_keys, None, None, None


torch.library.register_autograd(_chunk_scores, _differentiate_chunks, setup_context=_save_chunks)


@dispatch.operator("scatter_scores", learns=False)
def _scatter(
    grad: Tensor, rows: Tensor, chunks: Tensor, begin: Tensor, end: Tensor, query: Tensor,
    query_cu: Tensor, keys: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of query and keys, where score i is <query[rows[i]], keys[chunks[i]]>.

    grad, rows, chunks [E], a row or chunk of -1 takes no part; context c owns begin[c]..end[c]-1.
    """
    if dispatch.takes_triton("document_scores", query, keys):
        from msa_kernels import sums_triton

        given = keys, chunks, grad, rows, (begin, end), query_cu, query
        d_query = sums_triton.sum_into_rows(*given)
        by_chunk = tuple(chunks.sort(stable=True))
        return d_query, sums_triton.sum_into_chunks(query, rows, grad, by_chunk, keys)
    there = rows >= 0
    grad, rows, chunks = grad[there], rows[there], chunks[there]
    d_query = _weighted_sums(keys, chunks, grad, rows, len(query))
    d_keys = _weighted_sums(query, rows, grad, chunks, len(keys))
    return d_query.to(query.dtype), d_keys.to(keys.dtype)


@torch.library.register_fake(_scatter)
def _(grad, rows, chunks, begin, end, query, query_cu, keys):
    return query.new_empty(query.shape), keys.new_empty(keys.shape)


def document_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    context_bank: Tensor,
    bank_cu: Tensor,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Score of every document of each context's bank (SPEC section 2, "Scores").

    query [N, V] of the contexts' query tokens, query_cu [m+1]; keys [C, V], chunk_cu [n+1];
    context_bank [m]; bank_cu [b+1] documents per bank -> [m, n] float32 (float64 for float64): the
    maximum of <query, key> over the context's query tokens and the document's chunks. -inf outside
    the context's bank, for documents without chunks and contexts without query tokens. Query and
    keys may be of any floating dtype. The gradient goes to the arg-max (token, chunk) alone, among
    equals to the first chunk and its first token. scratch_mb bounds what the torch path holds
    beside arguments and result; the Triton kernel holds one number per score. Raises KernelError
    for tensors that do not fit together.
    """
    _check("document_scores", query, query_cu, keys)
    dispatch.check_cumulative("document_scores", "chunk_cu", chunk_cu, len(keys))
    dispatch.check_cumulative("document_scores", "bank_cu", bank_cu, len(chunk_cu) - 1)
    dispatch.check_numbers("document_scores", "context_bank", context_bank, len(query_cu) - 1)
    learns = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad)
    given = (query, query_cu, keys, chunk_cu, context_bank, bank_cu)
    with dispatch.without_autocast(query.device):
        return _document_scores(*given, scratch_mb * _MB, learns)[0]


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
    dispatch.check_numbers("chunk_scores", "index", index)
    dispatch.check_cumulative("chunk_scores", "index_cu", index_cu, len(index))
    with dispatch.without_autocast(query.device):
        return _chunk_scores(query, query_cu, keys, index, index_cu, scratch_mb * _MB)[0]


def _check(operation: str, query: Tensor, query_cu: Tensor, keys: Tensor) -> None:
    dispatch.check_floating(operation, query=query, keys=keys)
    dispatch.check_cumulative(operation, "query_cu", query_cu, len(query))
    if query.dim() != 2 or keys.dim() != 2 or query.shape[1] != keys.shape[1]:
        shapes = tuple(query.shape), tuple(keys.shape)
        raise KernelError(f"{operation}: query and keys have shapes {shapes}; need [N, V], [C, V]")
