"""Exact search in rounded router keys, certified by a bound (SPEC section 2).

1. Rough scores: every document is scored by the keys in the form in which they are searched.
2. Bound: a key that is off by e moves no score by more than |query| e (Cauchy-Schwarz).
3. Candidates: the documents whose rough score, within that bound, may be among the k best.
4. Exact scores: those of the candidates, from the stored keys, in float64, rounded to float32.

The result does not depend on the form of the keys, on tiles, on what else is scored, or on how
documents are divided over parts and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from msa_kernels import BlockScores, cumulative, prepared_scores
from torch import Tensor

from msa_train.memory.search.keys import LayerKeys, chunks_of
from msa_train.model.config import RouterConfig
from msa_train.model.scoring import Scoring

_SUMS = 128  # roundings in a float32 sum, beyond one per product
_BYTES = 32 << 20  # of float64 keys that are scored at once


class CertifiedSearch:
    """Searches the keys of one layer: those of several parts, whose documents follow one another.

    A row is the place of a document among those of all parts. Queries are [Nq, V] (or as the
    router's scoring has them) of m contexts, packed by query_cu [m+1].
    """

    def __init__(self, parts: Sequence[LayerKeys], router: RouterConfig):
        self._parts, self._scoring = parts, router.scoring
        self._starts = torch.tensor([0, *(part.documents for part in parts)]).cumsum(0).tolist()
        self._error = _joined_error(parts)
        self._norm = max(part.norm for part in parts)

    def rough(self, query: Tensor, query_cu: Tensor, gone: Tensor | None = None) -> BlockScores:
        """Scores of all documents by the keys as they are searched; -inf where `gone` [n] says."""
        prepared = [part.prepared for part in self._parts if part.prepared is not None]
        if len(prepared) == len(self._parts):
            return prepared_scores(prepared, query, query_cu, gone)
        found = [part.scores(query, query_cu) for part in self._parts]
        scores = found[0] if len(found) == 1 else torch.cat(found, 1)
        if gone is not None:
            scores.masked_fill_(gone.to(scores.device), -math.inf)
        edges = torch.tensor([0, scores.shape[1]])
        return BlockScores(scores, scores.amax(1, keepdim=True), edges)

    def candidates(
        self, query: Tensor, query_cu: Tensor, k: int, gone: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(context, row) of all documents that may be among their context's k best, on the CPU.

        Contexts ascend, and rows within each. k: at most as many as there are documents.
        """
        rough = self.rough(query, query_cu, gone)
        bound = _Bound.of(query, query_cu, self._error, self._norm)
        found = []
        for context in range(len(query_cu) - 1):
            rows = _candidates_of(rough, context, k, bound)
            found.append(torch.stack([torch.full_like(rows, context), rows]))
        context, row = torch.cat(found, 1)
        return context, row

    def exact(self, query: Tensor, query_cu: Tensor, context: Tensor, row: Tensor) -> Tensor:
        """[P] float32 scores, on the CPU, of pairs of a context (ascending) and a document."""
        found = torch.full((len(row),), -math.inf)
        query_cu, width = query_cu.cpu(), max(1, query.shape[1:].numel())
        for part, (low, high) in zip(self._parts, pairwise(self._starts), strict=True):
            own = ((row >= low) & (row < high)).nonzero().squeeze(1)
            if not len(own):
                continue
            at_once = max(1, _BYTES // (8 * max(1, part.longest_document) * width))
            for pairs in own.split(at_once):
                given = part, context[pairs], row[pairs] - low
                found[pairs] = _pair_scores(query, query_cu, *given, self._scoring)
        return found


@dataclass(frozen=True)
class _Bound:
    """How far a rough score can be from the exact one: |query| (error of the key + sums).

    longest [m]: length of each context's longest query vector; error: of keys, one number or [n];
    sums: what adding the products in float32 can lose, per length of the query.
    """

    longest: list[float]
    error: Tensor
    sums: float

    @classmethod
    def of(cls, query: Tensor, query_cu: Tensor, error: Tensor, norm: float) -> _Bound:
        """norm: no key is longer."""
        lengths = query.float().flatten(1).norm(dim=1)
        contexts = torch.arange(len(query_cu) - 1, device=query.device)
        longest = lengths.new_zeros(len(query_cu) - 1)
        longest.scatter_reduce_(0, contexts.repeat_interleave(query_cu.diff()), lengths, "amax")
        sums = (query.shape[1] + _SUMS) * 2.0**-23 * norm
        return cls((longest * (1 + 1e-5)).tolist(), error, sums)

    def of_rows(self, context: int, rows: slice) -> Tensor:
        error = self.error[rows] if self.error.dim() else self.error
        return self.longest[context] * (error + self.sums)

    def largest(self, context: int) -> float:
        error = float(self.error.max()) if self.error.numel() else 0.0
        return self.longest[context] * (error + self.sums)


def _joined_error(parts: Sequence[LayerKeys]) -> Tensor:
    """Of several parts: one number if each has one, else [n]."""
    if not any(isinstance(part.error, Tensor) for part in parts):
        return torch.tensor(max(part.error for part in parts))
    full = [
        part.error if isinstance(part.error, Tensor) else torch.full((part.documents,), part.error)
        for part in parts
    ]
    return torch.cat(full)


def _candidates_of(rough: BlockScores, context: int, k: int, bound: _Bound) -> Tensor:
    """Rows, ascending, whose upper bound reaches the k-th best lower bound.

    Only blocks whose maximum is among the k best can raise that lower bound, and only those whose
    maximum comes near it can hold such a document: no other block is read.
    """
    maxima = rough.maxima[context]
    high = float(maxima.topk(min(k, len(maxima))).values[-1])
    lower = [
        scores - bound.of_rows(context, rows).to(scores.device)
        for rows, scores in _blocks(rough, context, high)
    ]
    least = float(torch.cat(lower).topk(k).values[-1])
    found = [torch.zeros(0, dtype=torch.int64)]
    for rows, scores in _blocks(rough, context, least - bound.largest(context)):
        upper = scores + bound.of_rows(context, rows).to(scores.device)
        near = (upper >= least) & (scores > -math.inf)
        found.append(near.nonzero().squeeze(1).cpu() + rows.start)
    return torch.cat(found)


def _blocks(rough: BlockScores, context: int, least: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, scores) of the blocks whose maximum is at least `least`; neighbours are joined."""
    chosen = (rough.maxima[context] >= least).nonzero().squeeze(1).cpu()
    if not len(chosen):
        return
    breaks = (chosen.diff() > 1).nonzero().squeeze(1)
    firsts = torch.cat([chosen[:1], chosen[breaks + 1]])
    lasts = torch.cat([chosen[breaks], chosen[-1:]])
    edges = rough.edges
    for first, end in zip(edges[firsts].tolist(), edges[lasts + 1].tolist(), strict=True):
        yield slice(first, end), rough.scores[context, first:end]


def _pair_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: LayerKeys,
    context: Tensor,
    row: Tensor,
    scoring: Scoring,
) -> Tensor:
    """[P] float32 scores, on the CPU, of pairs of a context (ascending) and a document of `keys`.

    Only keys of those documents are read.
    """
    device, contexts = query.device, len(query_cu) - 1
    documents, which = row.unique(return_inverse=True)
    counts = keys.chunk_cu[documents + 1] - keys.chunk_cu[documents]
    cu = cumulative(counts)
    wide = keys.full[chunks_of(documents, keys.chunk_cu)].to(device).double()
    query, query_cu = query.double(), query_cu.to(device)
    if not scoring.scores_chunks:
        bank = query_cu.new_zeros(contexts), query_cu.new_tensor([0, len(documents)])
        scores = scoring.document_scores(query, query_cu, wide, cu.to(device), *bank)
        return scores.cpu()[context, which].float()
    entries = counts.new_zeros(contexts).index_add_(0, context, counts[which])
    entry_cu = cumulative(entries).to(device)
    chunks = chunks_of(which, cu).to(device)
    scores = scoring.chunk_scores(query, query_cu, wide, chunks, entry_cu).cpu()
    pair = torch.arange(len(row)).repeat_interleave(counts[which])
    best = scores.new_full((len(row),), -math.inf)
    return best.scatter_reduce_(0, pair, scores, "amax").float()
