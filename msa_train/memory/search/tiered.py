"""A memory in tiers, on one rank or several: what the decoder searches and reads."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from msa_kernels import select_chunks
from torch import Tensor

from msa_train.memory.search.shard import Found
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing


class Searcher(Protocol):
    """All documents of a memory, in one Shard or in those of several ranks."""

    def best(
        self, layer: int, query: Tensor, query_cu: Tensor, k: int, allowed: Tensor | None
    ) -> Found: ...

    def score(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor: ...

    def states(self, layer: int, places: Tensor) -> Pooled: ...


class TieredMemory:
    """The decoder's Memory over `shards`; documents by place 0..n-1.

    heads, head_dim: of keys and values. chunk_counts [n]; live [n] of the snapshot; allowed [n]:
    only these are searched (None: all).
    """

    def __init__(
        self,
        shards: Searcher,
        heads: int,
        head_dim: int,
        router: RouterConfig,
        chunk_counts: Tensor,
        live: Tensor,
        allowed: Tensor | None = None,
    ):
        self._shards, self._width, self._router = shards, (heads, head_dim), router
        self.chunk_counts, self._live, self._allowed = chunk_counts, live, allowed
        self.size = int((live if allowed is None else live & allowed).sum())

    def restricted(self, allowed: Tensor) -> TieredMemory:
        """The memory of the documents `allowed` [n] only."""
        both = allowed if self._allowed is None else allowed & self._allowed
        given = self._shards, *self._width, self._router, self.chunk_counts, self._live
        return TieredMemory(*given, both)

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and K and V of the winners' chunks, which chunk_index points into.

        K and V come as they are stored, on the query's device.
        """
        found = self._shards.best(layer, query, query_cu, self._router.top_k, self._allowed)
        places, local = _numbered(found.places)
        cu = F.pad(self.chunk_counts[places].cumsum(0), (1, 0))
        index, index_cu = (x.to(query.device) for x in select_chunks(local, cu))
        states = self._states(layer, places, query)
        own = self._router.scoring.chunk_scores(
            query, query_cu, states.key.to(query.dtype), index, index_cu
        )
        routing = Routing(
            query,
            query_cu,
            found.places.to(query.device),
            found.scores.to(query.device),
            index,
            index_cu,
            None if self._router.gate == "none" else own,
            best_chunks=None if own is None else _best_chunks(own, local, cu),
        )
        return routing, states.k, states.v

    def scores(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor:
        """[m, c] float32 of documents by place, -1 for none: what the vote needs."""
        return self._shards.score(layer, query, query_cu, places)

    def _states(self, layer: int, places: Tensor, query: Tensor) -> Pooled:
        if len(places):
            states = self._shards.states(layer, places)
            return Pooled(*(x.to(query.device) for x in (states.k, states.v, states.key)))
        empty = query.new_empty(0, *self._width)
        return Pooled(empty, empty, empty.flatten(1))


def _numbered(places: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct places [p] ascending, and [m, k] where each stands among them (-1: none)."""
    there = places >= 0
    distinct, which = places[there].unique(return_inverse=True)
    local = torch.full_like(places, -1)
    local[there] = which
    return distinct, local


def _best_chunks(scores: Tensor, local: Tensor, cu: Tensor) -> Tensor:
    """[m, k] which chunk of each selected document scores best, the first among equals.

    scores [S] of the entries, a context after the other, its documents ascending.
    """
    ordered, order = local.sort(1)
    counts = cu.diff()[ordered[ordered >= 0]]
    pair = torch.arange(len(counts)).repeat_interleave(counts)
    place = torch.arange(len(pair)) - (counts.cumsum(0) - counts)[pair]
    scores = scores.detach().cpu()
    best = scores.new_full((len(counts),), -math.inf).scatter_reduce_(0, pair, scores, "amax")
    place = torch.where(scores == best[pair], place, len(pair))
    first = torch.full_like(counts, len(pair)).scatter_reduce_(0, pair, place, "amin")
    out = torch.full_like(local, -1)
    out[ordered >= 0] = first
    return torch.empty_like(out).scatter_(1, order, out)
