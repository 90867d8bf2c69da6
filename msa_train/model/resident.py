"""A memory whose pooled states are tensors of one model's pass: what tests and conformance search.

The memory of a bank, in tiers and over ranks, is memory/search/tiered.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, route


class ResidentMemory:
    """Search over all documents of pooled states; chunk_cu [n+1]. The decoder's Memory."""

    def __init__(self, pooled: Mapping[int, Pooled], chunk_cu: Tensor, router: RouterConfig):
        self._pooled, self._chunk_cu, self._router = pooled, chunk_cu, router

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and the selected chunks' K and V in the order of chunk_index."""
        pooled = self._pooled[layer]
        bank = (
            query_cu.new_zeros(len(query_cu) - 1),
            query_cu.new_tensor([0, len(self._chunk_cu) - 1]),
        )
        routing = route(query, query_cu, pooled.key, self._chunk_cu, *bank, self._router)
        chunks, place = torch.unique(routing.chunk_index, return_inverse=True)
        return routing.pointing_at(place), pooled.k[chunks], pooled.v[chunks]
