"""Document and chunk scores in torch.

Scores are one GEMM of query vectors and pooled router keys, tile by tile over the chunks; each
tile is reduced over the context's tokens, then over the document's chunks, before the next is
computed, so that nothing of size tokens x chunks outlives its tile. The gradient of a score
reaches one (token, chunk) only: two indices per (context, document) are saved, backward scatters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels.cpu.segments import first_place, segment_max
from msa_kernels.ragged import gather_rows, padded_rows, similar_lengths
from msa_kernels.reference import accumulation_dtype

CACHE_BYTES = 8 << 20  # keys and scores of a tile, per thread (measured)


@dataclass(frozen=True)
class Stored:
    """Keys [C, V] that are read a tile at a time, as tensors of any floating dtype.

    dtype: the widest that scores of them need. copies: whether a tile is a copy.
    """

    read: Callable[[slice], Tensor]
    dtype: torch.dtype
    copies: bool

    @classmethod
    def of(cls, query: Tensor, keys: Tensor) -> Stored:
        dtype = accumulation_dtype(query, keys)
        return cls(keys.__getitem__, dtype, keys.dtype != dtype)


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


def _tile_size(group: _Group, keys: Stored, budget: float) -> int:
    """Chunks per tile: keys and scores that the cache holds, everything else within the budget."""
    (r, t, width), size = group.query.shape, group.query.element_size()
    cached = r * t * size + width * size
    # Beside scores: maxima and places over tokens (and while doubling), upcast keys.
    scratch = 3 * r * t * size + r * 8 * (size + 8) + (2 * width * size if keys.copies else 0)
    tile = budget / scratch
    if group.query.device.type == "cpu":
        tile = min(tile, max(64, CACHE_BYTES * torch.get_num_threads() / cached))
    return max(1, int(tile))


def documents(
    query: Tensor, query_cu: Tensor, keys: Stored, chunk_cu: Tensor, context_bank: Tensor,
    bank_cu: Tensor, budget: float, with_index: bool,
) -> list[Tensor]:  # fmt: skip
    """Scores [m, n] and, with_index, the query row and the chunk [m, n] of each. budget: bytes."""
    dtype = keys.dtype
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


def _search_bank(group: _Group, keys: Stored, chunk_cu: Tensor, budget: float, best: list) -> None:
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
        tile = keys.read(slice(start, stop))
        _search_tile(group, tile, start, edge, empty, [x[:, low:high] for x in best])


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


def scatter(grad: Tensor, rows: Tensor, chunks: Tensor, query: Tensor, keys: Tensor):
    """Gradients of scores[i] = <query[rows[i]], keys[chunks[i]]> for flat grad, rows, chunks."""
    grad_query = _weighted_sums(keys, chunks, grad, rows, len(query))
    grad_keys = _weighted_sums(query, rows, grad, chunks, len(keys))
    return grad_query.to(query.dtype), grad_keys.to(keys.dtype)


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


def entries(query, query_cu, keys, index, index_cu, budget):
    """(scores [S], query row [S] of each maximum). budget: bytes."""
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
