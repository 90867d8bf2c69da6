"""Decode steps captured as CUDA graphs: one replay in place of a few hundred launches.

Only used where the model lies on a CUDA device; on a CPU nothing of this runs.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import KVCache, Window

_SMALLEST = 4  # rows of the smallest step


class DecodeGraphs:
    """`MSADecoder.decode` on one cache, captured once per number of rows and window.

    Rows are rounded up to powers of two; KVCache.begin_step rounds windows. Rows beyond those in
    use are computed and thrown away: they are not active. A graph holds the addresses of the
    buffers, so all are captured anew when the cache has grown. Graphs run one after another and
    leave nothing but `hidden` behind, so that one pool of memory serves all.
    """

    def __init__(self, model: MSADecoder, cache: KVCache):
        self._model, self._cache = model, cache
        self._tokens = torch.zeros(cache.rows, dtype=torch.int64, device=cache.length.device)
        weight = model.model.embed_tokens.weight
        self._hidden = weight.new_zeros(cache.rows, model.config.hidden)
        self._captured: dict[tuple[int, Window], torch.cuda.CUDAGraph] = {}
        self._pool: tuple[int, int] | None = None
        self._version = cache.version

    def capture_all(self) -> int:
        """Captures every step that contexts with a memory can ask for, so that none of them waits
        for it; how many there are. The largest come first: they size the pool."""
        sizes = sorted({self._rounded(count) for count in range(1, self._cache.rows + 1)})
        for rows in reversed(sizes):
            for window in self._cache.windows():
                self._graph(rows, window)
        return len(self._captured)

    def decode(self, tokens: Tensor, window: Window) -> Tensor:
        """As MSADecoder.decode; tokens [b] may lie in pinned memory of the host. [b, d];
        overwritten by the next call."""
        count = len(tokens)
        self._tokens[:count].copy_(tokens, non_blocking=True)
        graph = self._graph(self._rounded(count), window)
        with self._on_device():
            graph.replay()
        return self._hidden[:count]

    def _rounded(self, count: int) -> int:
        return min(self._cache.rows, max(_SMALLEST, 1 << (count - 1).bit_length()))

    def _graph(self, rows: int, window: Window) -> torch.cuda.CUDAGraph:
        if self._version != self._cache.version:
            self._captured.clear()
            self._pool, self._version = None, self._cache.version
        if (rows, window) not in self._captured:
            self._captured[rows, window] = self._capture(rows, window)
        return self._captured[rows, window]

    def _step(self, rows: int, window: Window) -> None:
        self._hidden[:rows] = self._model.decode(self._tokens[:rows], self._cache, window)

    def _on_device(self) -> contextlib.AbstractContextManager:
        """A graph is captured, and replayed, on the current device's stream."""
        device = self._tokens.device
        return torch.cuda.device(device) if self._tokens.is_cuda else contextlib.nullcontext()

    @torch.inference_mode()
    def _capture(self, rows: int, window: Window) -> torch.cuda.CUDAGraph:
        """Runs the step first, as capture needs; with no row active, what it writes is lost."""
        active = self._cache.active.clone()
        self._cache.active.zero_()
        with self._on_device():
            here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._step(rows, window)
            here.wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: the one that fetches ahead may ask for memory at the same time.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                self._step(rows, window)
        self._cache.active.copy_(active)
        return graph
