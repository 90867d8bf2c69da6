"""Keys of one bank that a CPU searches again and again: prepared once, for inference.

`document_scores` takes any batch of banks and is differentiable, and so spends most of a search in
a large bank on allocating memory and on the documents' offsets. Here tiles begin where documents
begin, a tile's buffers stay in a core's cache, every thread has tiles of its own, and each block of
documents leaves its maximum: the best documents are then looked for in a few blocks only.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.quantised import QuantisedKeys
from msa_kernels.ragged import padded_rows, similar_lengths

TILE_BYTES = 8 << 20  # float32 keys of a tile, at most (measured)
TILE_CHUNKS = 32768  # chunks of a tile, at most (measured; in small tiles Python's calls cost time)
BLOCK_CHUNKS = 4096  # chunks of a block, roughly
_QUERY_TOKENS = 256  # padded query tokens that are multiplied at once


@dataclass(frozen=True)
class BlockScores:
    """Scores [m, n] float32 of all documents, and the maximum [m, b] of each block of them.

    edges [b+1]: block i is the documents edges[i]..edges[i+1]-1. -inf: no score.
    """

    scores: Tensor
    maxima: Tensor
    edges: Tensor


class PreparedKeys:
    """Router keys [C, V] of one bank, of any floating dtype or in 8 bits, on the CPU.

    chunk_cu [n+1] of its documents. Nothing is copied. Raises KernelError for tensors that do not
    fit together or lie elsewhere.
    """

    def __init__(self, keys: Tensor | QuantisedKeys, chunk_cu: Tensor):
        values = keys.values if isinstance(keys, QuantisedKeys) else keys
        dispatch.check_cumulative("PreparedKeys", "chunk_cu", chunk_cu, len(values))
        if values.device.type != "cpu":
            raise KernelError(
                f"PreparedKeys: keys are on {values.device}; use document_scores there"
            )
        self.keys, self.width = keys, values.shape[1]
        self._cu = chunk_cu.numpy()
        self.edges = self._cut(BLOCK_CHUNKS)
        chunks = max(1, min(TILE_CHUNKS, TILE_BYTES // (4 * max(1, self.width))))
        tiles = (self._tile(a, b) for a, b in pairwise(self._cut(chunks).tolist()))
        self.tiles = [tile for tile in tiles if tile.stop > tile.start]
        self._read = _reader(keys)

    @property
    def documents(self) -> int:
        return len(self._cu) - 1

    @property
    def read_in_place(self) -> bool:
        """Whether keys are multiplied where they lie."""
        return self._read is None

    def search(
        self, queries: _PaddedQueries, tile: _DocumentTile, products: Tensor, wide: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        """Writes the scores of a tile's documents into out [m, n].

        products, wide: flat, written over for products and widened keys. As few Python calls as
        possible: threads take turns at them.
        """
        chunks, contexts = tile.stop - tile.start, len(queries.contexts)
        if self._read is None:
            keys = self.keys[tile.start : tile.stop]
        else:
            keys = wide[: chunks * self.width].view(chunks, self.width)
            self._read(tile.start, tile.stop, keys)
        found = products[: len(queries.vectors) * chunks].view(len(queries.vectors), chunks)
        torch.mm(queries.vectors, keys.T, out=found)
        found = found.view(contexts, -1, chunks)
        if tile.edges is None and isinstance(queries.rows, slice):
            torch.amax(found, 1, out=out[queries.rows, tile.low : tile.high])
            return
        best = found.amax(1)
        out[queries.rows, tile.low : tile.high] = (
            best if tile.edges is None else _of_documents(best, tile.edges)
        )

    def _tile(self, low: int, high: int) -> _DocumentTile:
        edges = self._cu[low : high + 1]
        start, stop = int(edges[0]), int(edges[-1])
        single = bool((np.diff(edges) == 1).all())
        return _DocumentTile(low, high, start, stop, None if single else edges - start)

    def _cut(self, chunks: int) -> np.ndarray:
        """Edges of blocks of documents with about this many chunks each."""
        marks = np.arange(0, int(self._cu[-1]), chunks)
        edges = np.unique(np.searchsorted(self._cu[:-1], marks, "left"))
        inner = edges[(edges > 0) & (edges < self.documents)]
        return np.array([0, *inner, self.documents] if self.documents else [0], dtype=np.int64)


def prepared_scores(
    parts: Sequence[PreparedKeys], query: Tensor, query_cu: Tensor, gone: Tensor | None = None
) -> BlockScores:
    """Scores of the documents of all parts, one part after another, as document_scores has them.

    query [N, V] of m contexts, query_cu [m+1]; gone [n] bool: documents that get -inf. Without
    gradient. Raises KernelError for a query of another width.
    """
    dispatch.check_cumulative("prepared_scores", "query_cu", query_cu, len(query))
    if query.dim() != 2 or any(query.shape[1] != part.width for part in parts):
        raise KernelError(
            f"prepared_scores: query is {tuple(query.shape)}; need [N, {parts[0].width}]"
        )
    starts = np.cumsum([0, *(part.documents for part in parts)])
    edges = np.concatenate([part.edges[:-1] + at for part, at in zip(parts, starts, strict=False)])
    edges = np.append(edges, starts[-1])
    out = torch.full((len(query_cu) - 1, int(starts[-1])), -math.inf)
    work = [
        (part, tile, int(at))
        for part, at in zip(parts, starts, strict=False)
        for tile in part.tiles
    ]
    with torch.inference_mode():
        for queries in _padded_queries(query.detach().float(), query_cu):
            if work:
                _in_threads(partial(_search, queries, work, out), len(work))
        if gone is not None:
            out.masked_fill_(gone, -math.inf)
    maxima = out.new_empty(len(out), len(edges) - 1)
    if maxima.numel():
        np.maximum.reduceat(out.numpy(), edges[:-1], axis=1, out=maxima.numpy())
    return BlockScores(out, maxima, torch.from_numpy(edges))


@torch.inference_mode()  # a thread does not inherit its caller's
def _search(
    queries: _PaddedQueries,
    work: list[tuple[PreparedKeys, _DocumentTile, int]],
    out: Tensor,
    own: range,
) -> None:
    """One thread's tiles, work[own]: (part, tile, the part's first document)."""
    mine = [work[place] for place in own]
    largest = max(tile.stop - tile.start for _, tile, _ in mine)
    width = max(0 if part.read_in_place else part.width for part, _, _ in mine)
    buffers = torch.empty(len(queries.vectors) * largest), torch.empty(largest * width)
    for part, tile, at in mine:
        part.search(queries, tile, *buffers, out[:, at : at + part.documents])


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
class _PaddedQueries:
    """Contexts of similar length, padded by repeating rows of their own."""

    contexts: Tensor  # [r]
    vectors: Tensor  # [r * t, V]

    @cached_property
    def rows(self) -> slice | Tensor:
        """The contexts, as a slice where they are neighbours: writing to it copies nothing."""
        first, last = int(self.contexts[0]), int(self.contexts[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.contexts) else self.contexts


def _padded_queries(query: Tensor, query_cu: Tensor) -> Iterator[_PaddedQueries]:
    lengths = query_cu.diff().tolist()
    for members in similar_lengths(lengths, slack=64, limit=_QUERY_TOKENS):
        contexts = torch.tensor(members)
        rows, _ = padded_rows(query_cu, contexts, max(lengths[member] for member in members))
        yield _PaddedQueries(contexts, query[rows.flatten()])


def _reader(keys: Tensor | QuantisedKeys) -> Callable[[int, int, Tensor], Any] | None:
    """Copies rows start..stop-1 into a float32 tensor; None: keys are multiplied where they lie."""
    if isinstance(keys, QuantisedKeys):

        def dequantised(start: int, stop: int, wide: Tensor) -> None:
            wide.copy_(keys.values[start:stop])
            wide.unflatten(1, (keys.scales.shape[1], -1)).mul_(keys.scales[start:stop, :, None])

        return dequantised
    if keys.dtype == torch.float32:
        return None
    return lambda start, stop, wide: wide.copy_(keys[start:stop])


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


def _in_threads(search: Callable[[range], None], blocks: int) -> None:
    threads = min(torch.get_num_threads(), blocks)
    if threads <= 1:
        search(range(blocks))
        return
    pool = _pools.get(threads) or _pool(threads)
    bounds = [blocks * i // threads for i in range(threads + 1)]
    for done in [pool.submit(search, range(*pair)) for pair in pairwise(bounds)]:
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
