"""A memory whose pooled states are at hand as tensors (in memory, or memory-mapped from a bank)."""

from __future__ import annotations

import torch
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, route


class ResidentMemory:
    """Exact search over n documents; implements the decoder's Memory.

    pooled: per router layer, of all documents in ascending number; chunk_cu [n+1]. States may be
    stored in a narrower dtype than the model computes in: what is read is widened.
    """

    def __init__(self, pooled: dict[int, Pooled], chunk_cu: Tensor, router: RouterConfig):
        self._pooled = pooled
        self._chunk_cu = chunk_cu
        self._router = router

    @property
    def size(self) -> int:
        return len(self._chunk_cu) - 1

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and the selected chunks' K and V in the order of chunk_index."""
        pooled = self._pooled[layer]
        contexts = len(query_cu) - 1
        routing = route(
            query,
            query_cu,
            pooled.key,
            self._chunk_cu,
            query_cu.new_zeros(contexts),
            query_cu.new_tensor([0, self.size]),
            self._router,
        )
        chunks, place = torch.unique(routing.chunk_index, return_inverse=True)
        k, v = (states[chunks].to(query.dtype) for states in (pooled.k, pooled.v))
        return routing.pointing_at(place), k, v
