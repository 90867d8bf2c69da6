"""Decode steps captured as CUDA graphs: one replay in place of a few hundred launches.

Only used where the model lies on a CUDA device; on a CPU nothing of this runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import KVCache, Window

_SMALLEST = 4  # rows of the smallest step


class DecodeGraphs:
    """`MSADecoder.decode` on one cache, captured once per number of rows and window.

    Rows are rounded up to powers of two; KVCache.begin_step rounds windows. Rows beyond those in
    use are computed and thrown away: they are not active. A graph holds the addresses of the
    buffers, so all are captured anew when the cache has grown.
    """

    def __init__(self, model: MSADecoder, cache: KVCache):
        self._model, self._cache = model, cache
        self._tokens = torch.zeros(cache.rows, dtype=torch.int64, device=cache.length.device)
        self._captured: dict[tuple[int, Window], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._version = cache.version

    def decode(self, tokens: Tensor, window: Window) -> Tensor:
        """As MSADecoder.decode. [b, d]; overwritten by the next call."""
        if self._version != self._cache.version:
            self._captured.clear()
            self._version = self._cache.version
        count = len(tokens)
        rows = min(self._cache.rows, max(_SMALLEST, 1 << (count - 1).bit_length()))
        self._tokens[:count] = tokens
        if (rows, window) not in self._captured:
            self._captured[rows, window] = self._capture(rows, window)
        graph, hidden = self._captured[rows, window]
        graph.replay()
        return hidden[:count]

    def _capture(self, rows: int, window: Window) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Runs the step first, as capture needs; with no row active, what it writes is lost."""
        active = self._cache.active.clone()
        self._cache.active.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._model.decode(self._tokens[:rows], self._cache, window)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the one that fetches ahead may ask for memory at the same time.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            hidden = self._model.decode(self._tokens[:rows], self._cache, window)
        self._cache.active.copy_(active)
        return graph, hidden
