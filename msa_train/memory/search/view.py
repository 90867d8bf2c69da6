"""A view of a memory, which stays as it is: what the decoder searches, with numbers and texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from msa_kernels import cumulative, select_chunks
from torch import Tensor

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Document
from msa_train.memory.search.searcher import Searcher
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.router import Routing
from msa_train.model.transfer import moved

if TYPE_CHECKING:  # a view of random states needs no Arrow
    from msa_train.memory.bank.snapshot import BankSnapshot


class DocumentTexts(Protocol):
    """Texts by document number."""

    def __getitem__(self, number: int) -> Document: ...


@dataclass(frozen=True, eq=False)
class MemoryView:
    """n documents as a model reads them: the decoder's Memory.

    searcher: of all n, by place 0..n-1; heads, head_dim: of its keys and values; chunk_counts [n];
    numbers [n], ascending; documents: their texts; live [n] bool: those that were not removed;
    allowed [n] bool: only these are searched, and known (None: all). words: BM25 of all n, where
    they choose the texts to read together with the router (hybrid.py).
    """

    searcher: Searcher
    router: RouterConfig
    heads: int
    head_dim: int
    chunk_counts: Tensor
    numbers: Tensor
    documents: DocumentTexts
    live: Tensor
    allowed: Tensor | None = None
    words: BM25 | None = None

    @classmethod
    def of(
        cls,
        bank: BankSnapshot,
        searcher: Searcher,
        router: RouterConfig,
        words: BM25 | None = None,
    ) -> MemoryView:
        """Of a snapshot, whoever searches its documents."""
        form, counts = bank.manifest.form, bank.chunk_cu.diff()
        given = form.kv_heads, form.head_dim, counts, bank.numbers, bank, bank.live
        return cls(searcher, router, *given, words=words)

    def restricted(self, allowed: Tensor) -> MemoryView:
        """A view of only those documents that are `allowed` [n], too."""
        return replace(self, allowed=allowed if self.allowed is None else allowed & self.allowed)

    def __len__(self) -> int:
        """Documents that can be found."""
        return int(self.findable.sum())

    @property
    def findable(self) -> Tensor:
        """[n] bool: the documents that can be found."""
        return self.live if self.allowed is None else self.live & self.allowed

    def knows(self, number: int) -> bool:
        """Whether a document of this number can be found."""
        place = int(torch.searchsorted(self.numbers, number))
        stored = place < len(self.numbers) and int(self.numbers[place]) == number
        there = stored and bool(self.live[place])
        return there and (self.allowed is None or bool(self.allowed[place]))

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """Routing of m contexts, and K and V of the winners' chunks, which chunk_index points into.

        K and V are in the dtype in which they are stored, on the query's device.
        """
        found = self.searcher.best(layer, query, query_cu, self.router.top_k, self.allowed)
        places, local = _numbered(found.places)
        cu = cumulative(self.chunk_counts[places])
        chosen = found.places, found.scores, *select_chunks(local, cu)
        documents, values, index, index_cu = moved(chosen, query.device)
        states = self._states(layer, places, query)
        own = self.router.scoring.chunk_scores(
            query, query_cu, states.key.to(query.dtype), index, index_cu
        )
        routing = Routing(
            query,
            query_cu,
            documents,
            values,
            index,
            index_cu,
            None if self.router.gate == "none" else own,
            # Only who reports it waits for the scores.
            best_chunks=None if own is None else partial(_best_chunks, own, local, cu),
        )
        return routing, states.k, states.v

    def _states(self, layer: int, places: Tensor, query: Tensor) -> Pooled:
        if len(places):
            return self.searcher.states(layer, places).map(lambda x: x.to(query.device))
        empty = query.new_empty(0, self.heads, self.head_dim)
        return Pooled(empty, empty, query.new_empty(0, query.shape[-1]))


def _numbered(places: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct places [p] ascending, and [m, k] where each stands among them (-1: none)."""
    distinct, which = np.unique(places.numpy(), return_inverse=True)
    missing = int(np.searchsorted(distinct, 0))  # -1 comes first, if it is there
    which = which.reshape(places.shape) - missing
    return torch.from_numpy(distinct[missing:]), torch.from_numpy(which)


def _best_chunks(scores: Tensor, local: Tensor, cu: Tensor) -> Tensor:
    """[m, k] which chunk of each selected document scores best, the first among equals.

    scores [S] of the entries, context by context, the documents of each ascending.
    """
    given = local.numpy()
    order = given.argsort(1)
    ordered = np.take_along_axis(given, order, 1)
    counts = np.diff(cu.numpy())[ordered[ordered >= 0]]
    starts = counts.cumsum() - counts
    values = scores.detach().cpu().numpy()
    best = np.repeat(np.maximum.reduceat(values, starts), counts) if len(counts) else values
    place = np.arange(len(values)) - np.repeat(starts, counts)
    place[values < best] = len(values)
    out, sorted_out = np.empty_like(given), np.full_like(given, -1)
    if len(counts):
        sorted_out[ordered >= 0] = np.minimum.reduceat(place, starts)
    np.put_along_axis(out, order, sorted_out, 1)
    return torch.from_numpy(out)
