"""Keys of one bank that are searched again and again on a CPU: prepared once, for inference.

`document_scores` takes any batch of banks and learns, and so spends most of a search in a large
bank on fresh memory and on the documents' offsets. Here tiles begin where documents begin, the
buffers of a tile stay in a core's cache, every thread has tiles of its own, and each block of tiles
leaves its maximum: the best documents are then looked for in a few blocks only.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.quantised import QuantisedKeys
from msa_kernels.ragged import padded_rows, similar_lengths

TILE_BYTES = 3 << 19  # widened keys and scores of a tile: measured, a core's cache holds them
TILE_CHUNKS = 256, 4096  # least and most chunks of a tile
_GROUP_TOKENS = 2048  # query tokens that are multiplied at once


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
        self.keys, self._width = keys, values.shape[1]
        self._cu = chunk_cu.numpy()
        self._edges = self._cut(TILE_CHUNKS[1])
        self._read = _reader(keys)

    def scores(self, query: Tensor, query_cu: Tensor, gone: Tensor | None = None) -> BlockScores:
        """Scores of every document as document_scores defines them, without gradient.

        query [N, V] of m contexts, query_cu [m+1]; gone [n] bool: documents that have none.
        """
        dispatch.check_cumulative("PreparedKeys.scores", "query_cu", query_cu, len(query))
        if query.dim() != 2 or query.shape[1] != self._width:
            raise KernelError(
                f"PreparedKeys.scores: query is {tuple(query.shape)}; need [N, {self._width}]"
            )
        contexts, documents = len(query_cu) - 1, len(self._cu) - 1
        out = torch.full((contexts, documents), -math.inf)
        maxima = torch.full((contexts, max(0, len(self._edges) - 1)), -math.inf)
        missing = None if gone is None else gone.contiguous()
        with torch.inference_mode():
            for group in _groups(query.detach().float(), query_cu):
                found = _Found(group, out, maxima, missing)
                _in_threads(partial(self._search, found), maxima.shape[1])
        return BlockScores(out, maxima, torch.from_numpy(self._edges))

    @torch.inference_mode()  # a thread does not inherit its caller's
    def _search(self, found: _Found, blocks: range) -> None:
        """A thread's blocks, tile by tile."""
        group = found.group
        buffers = _Buffers(
            self._tile(len(group.query)), self._width, len(group.query), self._read is not None
        )
        for block in blocks:
            first, end = int(self._edges[block]), int(self._edges[block + 1])
            for low, high in self._tiles(first, end, buffers.chunks):
                found.put(self._best(group, low, high, buffers), low, high)
            found.close(block, first, end)

    def _best(self, group: _Group, low: int, high: int, buffers: _Buffers) -> Tensor:
        """[r, high - low] scores of the documents low..high-1, whose chunks the buffers hold."""
        start, stop = int(self._cu[low]), int(self._cu[high])
        keys = self.keys[start:stop] if self._read is None else self._read(start, stop, buffers)
        products = torch.mm(group.query, keys.T, out=buffers.products(stop - start))
        best = products.unflatten(0, (len(group.contexts), -1)).amax(1)
        counts = np.diff(self._cu[low : high + 1])
        if (counts == 1).all():
            return best
        return _of_documents(best, self._cu[low:high] - start, counts > 0)

    def _cut(self, chunks: int) -> np.ndarray:
        """Edges of blocks of about so many chunks, at documents."""
        documents = len(self._cu) - 1
        marks = np.arange(0, int(self._cu[-1]), chunks)
        edges = np.unique(np.searchsorted(self._cu[:-1], marks, "left"))
        inner = edges[(edges > 0) & (edges < documents)]
        return np.array([0, *inner, documents] if documents else [0], dtype=np.int64)

    def _tiles(self, first: int, end: int, chunks: int):
        """Documents of a block in stretches of at most `chunks` chunks (or one document)."""
        low = first
        while low < end:
            high = int(np.searchsorted(self._cu, self._cu[low] + chunks, "right")) - 1
            high = min(end, max(low + 1, high))
            yield low, high
            low = high

    def _tile(self, tokens: int) -> int:
        row = 4 * (tokens + (0 if self._read is None else self._width))
        return min(max(TILE_BYTES // max(1, row), TILE_CHUNKS[0]), TILE_CHUNKS[1])


@dataclass(frozen=True)
class _Group:
    """Contexts of similar length, padded with rows of their own."""

    contexts: Tensor  # [r]
    query: Tensor  # [r * t, V]


def _groups(query: Tensor, query_cu: Tensor) -> Iterator[_Group]:
    lengths = query_cu.diff().tolist()
    for members in similar_lengths(lengths, slack=64, limit=_GROUP_TOKENS):
        contexts = torch.tensor(members)
        rows, _ = padded_rows(query_cu, contexts, max(lengths[member] for member in members))
        yield _Group(contexts, query[rows.flatten()])


@dataclass(frozen=True)
class _Found:
    """Where the scores of a group go."""

    group: _Group
    out: Tensor  # [m, n]
    maxima: Tensor  # [m, b]
    gone: Tensor | None  # [n]

    def put(self, best: Tensor, low: int, high: int) -> None:
        if self.gone is not None:
            best.masked_fill_(self.gone[low:high], -math.inf)
        self.out[self.group.contexts, low:high] = best

    def close(self, block: int, first: int, end: int) -> None:
        contexts = self.group.contexts
        self.maxima[contexts, block] = self.out[contexts, first:end].amax(1)


class _Buffers:
    """What a thread writes tile after tile."""

    def __init__(self, chunks: int, width: int, tokens: int, widens: bool):
        self.chunks, self._tokens, self._width = chunks, tokens, width
        self._products = torch.empty(chunks * tokens)
        self._widened = torch.empty(chunks * width if widens else 0)

    def products(self, chunks: int) -> Tensor:
        if chunks > self.chunks:  # one document longer than a tile
            return torch.empty(self._tokens, chunks)
        return self._products[: chunks * self._tokens].view(self._tokens, chunks)

    def widened(self, chunks: int) -> Tensor:
        if chunks > self.chunks:
            return torch.empty(chunks, self._width)
        return self._widened[: chunks * self._width].view(chunks, self._width)


def _reader(keys: Tensor | QuantisedKeys) -> Callable[[int, int, _Buffers], Tensor] | None:
    """Puts rows into a tile's float32 buffer; None: they can be multiplied where they lie."""
    if isinstance(keys, QuantisedKeys):

        def dequantised(start: int, stop: int, buffers: _Buffers) -> Tensor:
            wide = buffers.widened(stop - start).copy_(keys.values[start:stop])
            wide.unflatten(1, (keys.scales.shape[1], -1)).mul_(keys.scales[start:stop, :, None])
            return wide

        return dequantised
    if keys.dtype == torch.float32:
        return None
    return lambda start, stop, buffers: buffers.widened(stop - start).copy_(keys[start:stop])


def _of_documents(values: Tensor, starts: np.ndarray, present: np.ndarray) -> Tensor:
    """[r, d] maxima of each document's columns of values [r, c]; -inf for one without chunks."""
    if present.all():
        return torch.from_numpy(np.maximum.reduceat(values.numpy(), starts, axis=1))
    out = values.new_full((len(values), len(starts)), -math.inf)
    if present.any():
        found = np.maximum.reduceat(values.numpy(), starts[present], axis=1)
        out[:, torch.from_numpy(present)] = torch.from_numpy(found)
    return out


# Threads of our own: each multiplies alone, tile after tile, without waiting for the others at
# every tile. Forked processes begin without.
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
    """So many threads in which torch uses one thread each."""
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "keys", torch.set_num_threads, (1,))
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)  # a thread's setting is also the default of later ones
    return _pools.setdefault(threads, pool)
