"""Keys of one bank that a CPU searches again and again: prepared once, for inference.

`document_scores` takes any batch of banks and is differentiable, and so spends most of a search in
a large bank on allocating memory and on the documents' offsets. Here tiles begin where documents
begin, a tile's buffers stay in a core's cache, threads take tile after tile, and each block of
documents leaves its maximum: the best documents are then looked for in a few blocks only.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.products import Product, products_of, scratch
from msa_kernels.quantised import QuantisedKeys
from msa_kernels.ragged import padded_rows, similar_lengths

BLOCK_DOCUMENTS = 256
_QUERY_TOKENS = 256  # padded query tokens that are multiplied at once


@dataclass(frozen=True)
class BlockScores:
    """Scores of n documents, and the maximum of each block of neighbours.

    blocks [m, b, s] float32: document i stands at [:, i // s, i % s], -inf: no score, and behind
    the last document; maxima [m, b]; documents: n.
    """

    blocks: Tensor
    maxima: Tensor
    documents: int

    @property
    def scores(self) -> Tensor:
        """[m, n]"""
        return self.blocks.flatten(1)[:, : self.documents]


class PreparedKeys:
    """Router keys [C, V] of one bank, of any floating dtype or in 8 bits, on the CPU.

    chunk_cu [n+1] of its documents; longest: no key is longer (None: not known, which leaves out
    products that could overflow). Nothing is copied. rounding: no score is off by more than this
    times |query| and the longest key, beside what float32 sums lose. Raises KernelError for tensors
    that do not fit together or lie elsewhere.
    """

    def __init__(
        self, keys: Tensor | QuantisedKeys, chunk_cu: Tensor, longest: float | None = None
    ):
        values = keys.values if isinstance(keys, QuantisedKeys) else keys
        dispatch.check_cumulative("PreparedKeys", "chunk_cu", chunk_cu, len(values))
        if values.device.type != "cpu":
            raise KernelError(
                f"PreparedKeys: keys are on {values.device}; use document_scores there"
            )
        self.width, self._cu = values.shape[1], chunk_cu.numpy()
        self._single = bool((np.diff(self._cu) == 1).all())
        self._ways = [(each, self._cut(each.tile_chunks)) for each in products_of(keys, longest)]
        self.rounding = max(each.rounding for each, _ in self._ways)

    @property
    def documents(self) -> int:
        return len(self._cu) - 1

    def work(self, vectors: Tensor, first: int) -> Iterator[_Task]:
        """Tiles to multiply query vectors [r, V] with; first: where its documents' scores go."""
        product, tiles = next(way for way in self._ways if len(vectors) <= way[0].most)
        query = product.prepared(vectors)
        return (_Task(product, query, tile, first) for tile in tiles)

    def _cut(self, chunks: int) -> list[_DocumentTile]:
        """Tiles of documents with about this many chunks each."""
        marks = np.arange(0, int(self._cu[-1]), chunks)
        edges = np.unique(np.searchsorted(self._cu[:-1], marks, "left"))
        inner = edges[(edges > 0) & (edges < self.documents)].tolist()
        bounds = [0, *inner, self.documents] if self.documents else []
        return [self._tile(low, high) for low, high in pairwise(bounds)]

    def _tile(self, low: int, high: int) -> _DocumentTile:
        edges = self._cu[low : high + 1]
        start, stop = int(edges[0]), int(edges[-1])
        single = self._single or bool((np.diff(edges) == 1).all())
        return _DocumentTile(low, high, start, stop, None if single else edges - start)


def prepared_scores(
    parts: Sequence[PreparedKeys], query: Tensor, query_cu: Tensor, gone: Tensor | None = None
) -> BlockScores:
    """Scores of the documents of all parts, one part after another, as document_scores has them.

    query [N, V] of m contexts, query_cu [m+1]; gone [n] bool: documents that get -inf. Without
    gradient, and as exact as the parts' `rounding` says. Raises KernelError for a query of another
    width.
    """
    dispatch.check_cumulative("prepared_scores", "query_cu", query_cu, len(query))
    if query.dim() != 2 or any(query.shape[1] != part.width for part in parts):
        raise KernelError(
            f"prepared_scores: query is {tuple(query.shape)}; need [N, {parts[0].width}]"
        )
    starts = np.cumsum([0, *(part.documents for part in parts)]).tolist()
    count, contexts = starts[-1], len(query_cu) - 1
    with torch.inference_mode():
        out = torch.empty(contexts, -(-count // BLOCK_DOCUMENTS) * BLOCK_DOCUMENTS)
        out[:, count:] = -math.inf
        lengths = query_cu.diff().tolist()
        if 0 in lengths:
            out[torch.tensor([not length for length in lengths])] = -math.inf
        for queries in _padded_queries(query.detach().float(), query_cu, lengths):
            tasks = [
                task
                for part, first in zip(parts, starts, strict=False)
                for task in part.work(queries.vectors, first)
            ]
            _in_threads(partial(_search, queries, out), tasks)
        if gone is not None:
            out[:, :count].masked_fill_(gone, -math.inf)
        blocks = out.unflatten(1, (out.shape[1] // BLOCK_DOCUMENTS, BLOCK_DOCUMENTS))
        return BlockScores(blocks, blocks.amax(2), count)


@torch.inference_mode()  # a thread does not inherit its caller's
def _search(queries: _PaddedQueries, out: Tensor, tasks: Iterator[_Task]) -> None:
    """Tasks until none are left: scores of the contexts' documents into out [m, n]."""
    rows, contexts, count = queries.rows, queries.contexts, len(queries.vectors)
    for task in tasks:
        tile = task.tile
        place = slice(task.first + tile.low, task.first + tile.high)
        if tile.start == tile.stop:
            out[rows, place] = -math.inf
            continue
        direct = tile.edges is None and isinstance(rows, slice)
        if direct and count == contexts:  # a vector for each context
            task.product.multiply(task.query, tile.start, tile.stop, out[rows, place])
            continue
        chunks = tile.stop - tile.start
        found = scratch("products", (count, chunks), torch.float32)
        task.product.multiply(task.query, tile.start, tile.stop, found)
        found = found.view(contexts, -1, chunks)
        if direct:
            torch.amax(found, 1, out=out[rows, place])
            continue
        best = found.amax(1)
        out[rows, place] = best if tile.edges is None else _of_documents(best, tile.edges)


@dataclass(frozen=True)
class _DocumentTile:
    """The documents low..high-1, whose chunks are start..stop-1.

    edges [d+1] of the documents within it; None: each has one chunk.
    """

    low: int
    high: int
    start: int
    stop: int
    edges: np.ndarray | None


@dataclass(frozen=True)
class _Task:
    """A tile to multiply, and the place of its part's first document."""

    product: Product
    query: Any
    tile: _DocumentTile
    first: int


@dataclass(frozen=True)
class _PaddedQueries:
    """Contexts of similar length, padded by repeating rows of their own.

    rows: which contexts, a slice where they are neighbours: writing to it copies nothing.
    """

    rows: slice | Tensor
    contexts: int
    vectors: Tensor  # [contexts * t, V]


def _padded_queries(
    query: Tensor, query_cu: Tensor, lengths: list[int]
) -> Iterator[_PaddedQueries]:
    if len(set(lengths)) == 1 and 0 < len(query) <= _QUERY_TOKENS:  # nothing to pad
        yield _PaddedQueries(slice(0, len(lengths)), len(lengths), query)
        return
    for members in similar_lengths(lengths, slack=64, limit=_QUERY_TOKENS):
        contexts, first = torch.tensor(members), members[0]
        rows, _ = padded_rows(query_cu, contexts, max(lengths[member] for member in members))
        if members == list(range(first, first + len(members))):
            contexts = slice(first, first + len(members))
        yield _PaddedQueries(contexts, len(members), query[rows.flatten()])


def _of_documents(values: Tensor, edges: np.ndarray) -> Tensor:
    """[r, d] maxima of each document's columns of values [r, c]; -inf for one without chunks."""
    starts, present = edges[:-1], edges[1:] > edges[:-1]
    if present.all():
        return torch.from_numpy(np.maximum.reduceat(values.numpy(), starts, axis=1))
    out = values.new_full((len(values), len(starts)), -math.inf)
    if present.any():
        found = np.maximum.reduceat(values.numpy(), starts[present], axis=1)
        out[:, torch.from_numpy(present)] = torch.from_numpy(found)
    return out


# Threads of our own: each goes through its tiles without waiting for the others at every product.
# A forked process has none of its parent's.
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)


def _in_threads(search: Callable[[Iterator[Any]], None], tasks: Sequence[Any]) -> None:
    """Every thread takes the next task that none has taken: one that is held up delays no other."""
    threads, waiting = min(torch.get_num_threads(), len(tasks)), iter(tasks)
    if threads <= 1:
        search(waiting)
        return
    pool = _pools.get(threads) or _pool(threads)
    for done in [pool.submit(search, waiting) for _ in range(threads)]:
        done.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool of threads, in each of which torch uses one thread."""
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "keys", torch.set_num_threads, (1,))
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)  # a thread's setting is also the default of later ones
    return _pools.setdefault(threads, pool)
