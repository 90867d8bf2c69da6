"""Documents that one process searches, exactly: the whole memory, or a rank's share of it.

A search has two steps. Rough: every document is scored by the keys in the form they are kept in.
Exact: those that might be among the best (rounding moves no score by more than a known length) are
scored again from the stored keys, in float64 rounded to float32. What comes out does not depend on
the form of the keys, on tiles, or on how documents are divided over parts and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from msa_kernels import top_documents
from torch import Tensor

from msa_train.memory.search.certified import Doubts, within_reach
from msa_train.memory.search.exact import pair_scores, pairs_at_once
from msa_train.memory.search.keys import LayerKeys, joined_error, rough_scores
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Found:
    """The best documents of m contexts, best first; equal scores: the lower place first.

    places [m, k'] int64 of documents in the memory, -1 for none; scores [m, k'] float32, -inf.
    """

    places: Tensor
    scores: Tensor


def best_of(found: Sequence[Found], k: int) -> Found:
    """The k best of several searches in disjoint documents."""
    places = torch.cat([each.places for each in found], 1)
    scores = torch.cat([each.scores for each in found], 1)
    places, order = places.sort(1)  # -1 first: they sort last by score
    scores, best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Found(places.gather(1, best)[:, :k], scores[:, :k])


@dataclass(frozen=True)
class Part:
    """Consecutive documents of a memory, from place `first` on.

    chunk_cu [n+1] from 0; keys: router layer -> LayerKeys; read(layer, rows [p] ascending) -> the
    states of all chunks of some documents, by row in this part, on the computing device.
    """

    first: int
    chunk_cu: Tensor
    keys: Mapping[int, LayerKeys]
    read: Callable[[int, Tensor], Pooled]

    @property
    def documents(self) -> int:
        return len(self.chunk_cu) - 1

    @cached_property
    def longest(self) -> int:
        """Chunks of its longest document."""
        return int(self.chunk_cu.diff().max())


class Shard:
    """Exact search over the parts of a memory of n documents that this process holds.

    live [n]: documents that were not removed. See memory/search/view.py for who asks it.
    """

    def __init__(self, parts: Sequence[Part], router: RouterConfig, live: Tensor):
        self.parts = [part for part in parts if part.documents]
        self._router, self._live = router, live
        self._firsts = torch.tensor([part.first for part in self.parts] or [0])
        sizes = [torch.arange(part.first, part.first + part.documents) for part in self.parts]
        self._places = torch.cat([torch.zeros(0, dtype=torch.int64), *sizes])  # [n'] of its own
        self._gone = ~live[self._places]
        self._any_gone = bool(self._gone.any())
        self._errors: dict[int, Tensor] = {}

    def best(
        self, layer: int, query: Tensor, query_cu: Tensor, k: int, allowed: Tensor | None = None
    ) -> Found:
        """The k best documents of each context, on the CPU.

        query [Nq, V] of m contexts, query_cu [m+1]; allowed [n] bool: only these (None: all).
        """
        contexts, k = len(query_cu) - 1, min(k, len(self._places))
        if not k:
            nothing = torch.zeros(contexts, 0)
            return Found(nothing.long(), nothing)
        gone = self._gone if self._any_gone else None
        if allowed is not None:
            gone = ~(allowed & self._live)[self._places]
        keys = [part.keys[layer] for part in self.parts]
        rough = rough_scores(keys, query, query_cu, gone)
        if not self._router.scoring.certifiable:  # full keys were scored
            scores, row = top_documents(rough.scores.cpu(), k)
            return Found(self._places[row].masked_fill(row < 0, -1), scores)
        doubts = Doubts.of(query, query_cu, self._error(layer), max(each.norm for each in keys))
        context, row = within_reach(rough, k, doubts)
        exact = self._exact(layer, query, query_cu, context, row)
        return best_of([_padded(context, self._places[row], exact, contexts)], k)

    def score(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor:
        """[m, c] float32 on the CPU: exact scores of documents, -inf where not in this shard.

        places [m, c]: of documents, another list for each context; -1 for none.
        """
        scores = torch.full(places.shape, -math.inf)
        if not len(self._places):
            return scores
        row = torch.searchsorted(self._places, places).clamp(max=len(self._places) - 1)
        there = self._places[row] == places
        context, column = there.nonzero(as_tuple=True)
        scores[context, column] = self._exact(layer, query, query_cu, context, row[there])
        return scores

    def states(self, layer: int, places: Tensor) -> Pooled:
        """Rows of all chunks of documents of this shard, places [p] ascending, in their order."""
        found = [part.read(layer, rows) for part, rows in self._divided(places)]
        return Pooled(
            *(_joined([vars(each)[name] for each in found]) for name in ("k", "v", "key"))
        )

    def _divided(self, places: Tensor) -> Iterable[tuple[Part, Tensor]]:
        """Places, ascending, by part: rows within each."""
        bounds = torch.searchsorted(places, self._firsts).tolist()
        for part, (low, high) in zip(self.parts, pairwise([*bounds, len(places)]), strict=True):
            if low < high:
                rows = places[low:high] - part.first
                assert int(rows[-1]) < part.documents, "a document of another shard"
                yield part, rows

    def _error(self, layer: int) -> Tensor:
        """By how much keys of its documents may be off, see LayerKeys."""
        if layer not in self._errors:
            self._errors[layer] = joined_error([part.keys[layer] for part in self.parts])
        return self._errors[layer]

    def _exact(
        self, layer: int, query: Tensor, query_cu: Tensor, context: Tensor, row: Tensor
    ) -> Tensor:
        """[P] float32 scores of pairs of a context (ascending) and a document of this shard."""
        found = torch.full((len(row),), -math.inf)
        query_cu = query_cu.cpu()
        starts = torch.tensor([0, *(part.documents for part in self.parts)]).cumsum(0)
        for part, (low, high) in zip(self.parts, pairwise(starts.tolist()), strict=True):
            own = ((row >= low) & (row < high)).nonzero().squeeze(1)
            for pairs in own.split(pairs_at_once(part.longest, max(1, query.shape[1:].numel()))):
                given = part.keys[layer].full, part.chunk_cu, context[pairs], row[pairs] - low
                found[pairs] = pair_scores(query, query_cu, *given, self._router)
        return found


def _padded(context: Tensor, places: Tensor, scores: Tensor, contexts: int) -> Found:
    """Pairs, contexts ascending, as rows of equal length."""
    counts = torch.bincount(context, minlength=contexts)
    width = int(counts.max()) if len(counts) else 0
    real = torch.arange(width) < counts[:, None]
    out = Found(torch.full(real.shape, -1), torch.full(real.shape, -math.inf))
    out.places[real], out.scores[real] = places, scores
    out.places[out.scores == -math.inf] = -1
    return out


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
