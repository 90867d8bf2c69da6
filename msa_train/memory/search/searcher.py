"""The documents that one process searches: a whole memory, or a rank's share of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from msa_kernels import top_documents
from torch import Tensor

from msa_train.memory.search.certified import CertifiedSearch
from msa_train.memory.search.device_cache import HostDocuments, Wanted
from msa_train.memory.search.device_search import DeviceSearch, DocumentRows
from msa_train.memory.search.keys import LayerKeys
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Found:
    """The best documents of m contexts, best first; of equal scores the lower place first.

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


class Searcher(Protocol):
    """All documents of a memory, by place: a LocalSearcher, or those of several ranks."""

    def best(
        self, layer: int, query: Tensor, query_cu: Tensor, k: int, allowed: Tensor | None
    ) -> Found: ...

    def score(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor: ...

    def states(self, layer: int, places: Tensor) -> Pooled: ...


@dataclass(frozen=True)
class Part:
    """Consecutive documents of a memory, from place `first` on.

    chunk_cu [n+1] from 0; keys: router layer -> LayerKeys; read(layer, rows [p] ascending) -> the
    states of all chunks of some documents, by row in this part, on the computing device; or whose
    states they are, where the searcher reads those of several parts together.
    """

    first: int
    chunk_cu: Tensor
    keys: Mapping[int, LayerKeys]
    read: Callable[[int, Tensor], Pooled] | HostDocuments

    @property
    def documents(self) -> int:
        return len(self.chunk_cu) - 1


class LocalSearcher:
    """Exact search over the parts of a memory of n documents that this process holds.

    live [n] bool: documents that were not removed. read: states of documents of several parts
    (None: each part reads its own).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        router: RouterConfig,
        live: Tensor,
        read: Callable[[int, Wanted], Pooled] | None = None,
    ):
        self.parts, self._read = [part for part in parts if part.documents], read
        self._router, self._live = router, live
        self._firsts = torch.tensor([part.first for part in self.parts] or [0])
        sizes = [torch.arange(part.first, part.first + part.documents) for part in self.parts]
        self._places = torch.cat([torch.zeros(0, dtype=torch.int64), *sizes])  # [n'] of its own
        gone = ~live[self._places]
        self._gone = gone if bool(gone.any()) else None
        self._filtered: tuple[Tensor, Tensor] | None = None
        self._rows = _table_rows(self.parts) if router.scoring.certifiable else None
        self._searches: dict[int, CertifiedSearch | DeviceSearch] = {}

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
        gone = self._gone if allowed is None else self._not(allowed)
        search = self.certified(layer)
        if not self._router.scoring.certifiable:  # then the full keys are searched
            scores, row = top_documents(search.rough(query, query_cu, gone).scores.cpu(), k)
            return Found(self._places[row].masked_fill(row < 0, -1), scores)
        context, row, scores = search.best_pairs(query, query_cu, k, gone)
        return _best_pairs(context, self._places[row], scores, contexts, k)

    def score(self, layer: int, query: Tensor, query_cu: Tensor, places: Tensor) -> Tensor:
        """[m, c] float32 on the CPU: exact scores of documents, -inf where not in this searcher.

        places [m, c]: of documents, another list for each context; -1 for none.
        """
        scores = torch.full(places.shape, -math.inf)
        if not len(self._places):
            return scores
        row = torch.searchsorted(self._places, places).clamp(max=len(self._places) - 1)
        there = self._places[row] == places
        context, column = there.nonzero(as_tuple=True)
        exact = self.certified(layer).exact(query, query_cu, context, row[there])
        scores[context, column] = exact
        return scores

    def states(self, layer: int, places: Tensor) -> Pooled:
        """Rows of all chunks of its documents at places [p], ascending, in their order."""
        divided = self._divided(places)
        if self._read is not None:
            return self._read(layer, [(part.read, rows) for part, rows in divided])
        found = [part.read(layer, rows) for part, rows in divided]
        return found[0] if len(found) == 1 else Pooled.joined(found)

    def certified(self, layer: int) -> CertifiedSearch | DeviceSearch:
        """The search in the keys of a layer; needs at least one document."""
        if layer not in self._searches:
            keys = [part.keys[layer] for part in self.parts]
            self._searches[layer] = (
                CertifiedSearch(keys, self._router)
                if self._rows is None
                else DeviceSearch(keys, self._rows, self._router)
            )
        return self._searches[layer]

    def _not(self, allowed: Tensor) -> Tensor:
        """[n'] bool: documents that are not allowed, or were removed; the latest is kept, because
        every layer of a question asks for it."""
        kept = self._filtered
        if kept is None or kept[0] is not allowed:
            self._filtered = kept = allowed, ~(allowed & self._live)[self._places]
        return kept[1]

    def _divided(self, places: Tensor) -> Iterable[tuple[Part, Tensor]]:
        """Places, ascending, by part: rows within each."""
        bounds = torch.searchsorted(places, self._firsts).tolist()
        for part, (low, high) in zip(self.parts, pairwise([*bounds, len(places)]), strict=True):
            if low < high:
                rows = places[low:high] - part.first
                assert int(rows[-1]) < part.documents, "a document of another searcher"
                yield part, rows


def _table_rows(parts: Sequence[Part]) -> DocumentRows | None:
    """Where the documents' keys lie on a device, the same in all layers; None on a CPU."""
    keys = [next(iter(part.keys.values())) for part in parts]
    return DocumentRows(keys, keys[0].device) if keys and keys[0].in_table else None


def _best_pairs(context: Tensor, places: Tensor, scores: Tensor, contexts: int, k: int) -> Found:
    """The k best of each context's pairs, as rows of equal length. Contexts, places ascend."""
    given, score = context.numpy(), scores.numpy()
    order = np.lexsort((-score, given))  # stable: of equal scores the lower place first
    counts = np.bincount(given, minlength=contexts)
    rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    order, rank = order[rank < k], rank[rank < k]
    shape = contexts, min(k, counts.max(initial=0))
    found, best = np.full(shape, -1), np.full(shape, -math.inf, np.float32)
    found[given[order], rank] = np.where(score[order] > -math.inf, places.numpy()[order], -1)
    best[given[order], rank] = score[order]
    return Found(torch.from_numpy(found), torch.from_numpy(best))
