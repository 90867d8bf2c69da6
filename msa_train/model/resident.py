"""A memory whose pooled states are at hand as tensors (in memory, or memory-mapped from a bank)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from msa_kernels import select_chunks
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing, route


class ResidentMemory:
    """Exact search over all documents of stored states, or over a part; the decoder's Memory.

    pooled: per router layer, of all documents in ascending number; chunk_cu [n+1]; places [n']
    ascending: the part. A part copies its router keys, and nothing where its documents are
    consecutive; K and V stay where they lie (memory-mapped, say) and only winners are read.
    States may be narrower than the model computes in: what is read is widened.
    """

    def __init__(
        self,
        pooled: Mapping[int, Pooled],
        chunk_cu: Tensor,
        router: RouterConfig,
        places: Tensor | None = None,
    ):
        self._pooled = pooled
        self._router = router
        self._chunk_cu, self._keys, self._rows = chunk_cu, None, None
        if places is not None:
            self._rows = select_chunks(places[None], chunk_cu)[0]
            self._chunk_cu = torch.nn.functional.pad(chunk_cu.diff()[places].cumsum(0), (1, 0))
            self._keys = {layer: _rows(states.key, self._rows) for layer, states in pooled.items()}

    @property
    def size(self) -> int:
        return len(self._chunk_cu) - 1

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and the selected chunks' K and V in the order of chunk_index."""
        pooled = self._pooled[layer]
        routing = route(
            query,
            query_cu,
            pooled.key if self._keys is None else self._keys[layer],
            self._chunk_cu,
            query_cu.new_zeros(len(query_cu) - 1),
            query_cu.new_tensor([0, self.size]),
            self._router,
        )
        chunks, place = torch.unique(routing.chunk_index, return_inverse=True)
        if self._rows is not None:
            chunks = self._rows[chunks]
        k, v = (states[chunks].to(query.dtype) for states in (pooled.k, pooled.v))
        return routing.pointing_at(place), k, v


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    """states[rows], without a copy where the ascending rows are consecutive."""
    first, count = int(rows[0]) if len(rows) else 0, len(rows)
    if count == 0 or int(rows[-1]) == first + count - 1:
        return states[first : first + count]
    return states[rows]
