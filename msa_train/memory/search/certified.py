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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from msa_kernels import BlockScores, cumulative, prepared_scores
from torch import Tensor

from msa_train.memory.search.keys import LayerKeys, chunks_of, lost_in_sums
from msa_train.model.config import RouterConfig
from msa_train.model.scoring import Scoring

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
        self._error_blocks: Tensor | None = None
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
        return BlockScores(scores[:, None], scores.amax(1, keepdim=True), scores.shape[1])

    def candidates(
        self, query: Tensor, query_cu: Tensor, k: int, gone: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(context, row) of all documents that may be among their context's k best, on the CPU.

        Contexts ascend, and rows within each. k: at most as many as there are documents.
        """
        rough = self.rough(query, query_cu, gone)
        bound = _Bound.of(query, query_cu, self._error_of(rough), self._norm)
        found = [_candidates_of(rough, each, k, bound) for each in range(len(query_cu) - 1)]
        contexts = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        return torch.from_numpy(contexts), torch.cat(found)

    def best_pairs(
        self, query: Tensor, query_cu: Tensor, k: int, gone: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(context, row, exact score), on the CPU, of pairs among which are the k best of each
        context: the candidates."""
        context, row = self.candidates(query, query_cu, k, gone)
        return context, row, self.exact(query, query_cu, context, row)

    def _error_of(self, rough: BlockScores) -> Tensor | float:
        """The keys' error: one number, or that of each document [b, s] as scores are laid out."""
        if isinstance(self._error, float):
            return self._error
        blocks, size = rough.blocks.shape[1:]
        if self._error_blocks is None or self._error_blocks.shape != (blocks, size):
            padded = self._error.new_zeros(blocks * size)
            padded[: rough.documents] = self._error
            self._error_blocks = padded.view(blocks, size)
        return self._error_blocks

    def exact(self, query: Tensor, query_cu: Tensor, context: Tensor, row: Tensor) -> Tensor:
        """[P] float32 scores, on the CPU, of pairs of a context (ascending) and a document."""
        query_cu, width = query_cu.cpu(), max(1, query.shape[1:].numel())
        parts = zip(self._parts, pairwise(self._starts), strict=True)
        if len(self._parts) == 1:
            work = [(self._parts[0], 0, torch.arange(row.shape[0]))]
        else:
            inside = ((part, low, (row >= low) & (row < high)) for part, (low, high) in parts)
            work = [(part, low, own.nonzero().squeeze(1)) for part, low, own in inside]
        found = torch.full(row.shape, -math.inf)
        for part, low, own in work:
            at_once = max(1, _BYTES // (8 * max(1, part.longest_document) * width))
            if own.shape[0] == row.shape[0] <= at_once:  # all at once: nothing to divide
                return _pair_scores(query, query_cu, part, context, row - low, self._scoring)
            for pairs in own.split(at_once) if own.shape[0] else ():
                given = part, context[pairs], row[pairs] - low
                found[pairs] = _pair_scores(query, query_cu, *given, self._scoring)
        return found


@dataclass(frozen=True)
class _Bound:
    """How far a rough score can be from the exact one: |query| (error of the key + sums).

    longest [m]: length of each context's longest query vector; error: of keys, one number or that
    of each document [b, s]; sums: what adding the products in float32 can lose, per length of the
    query.
    """

    longest: list[float]
    error: Tensor | float
    sums: float

    @classmethod
    def of(cls, query: Tensor, query_cu: Tensor, error: Tensor | float, norm: float) -> _Bound:
        """norm: no key is longer."""
        lengths = (query.float().flatten(1).norm(dim=1) * (1 + 1e-5)).tolist()
        longest = [max(lengths[a:b], default=0.0) for a, b in pairwise(query_cu.tolist())]
        return cls(longest, error, lost_in_sums(query.shape[1], norm))

    def of_blocks(self, context: int, blocks: Tensor) -> Tensor | float:
        """For the documents of some blocks [c, s], or one number for all."""
        error = self.error if isinstance(self.error, float) else self.error[blocks]
        return self.longest[context] * (error + self.sums)

    @cached_property
    def _largest(self) -> float:
        return self.error if isinstance(self.error, float) else float(self.error.max())

    def largest(self, context: int) -> float:
        return self.longest[context] * (self._largest + self.sums)


def _joined_error(parts: Sequence[LayerKeys]) -> Tensor | float:
    """Of several parts: one number if each has one, else [n]."""
    if not any(isinstance(part.error, Tensor) for part in parts):
        return max(float(part.error) for part in parts)
    full = [
        part.error if isinstance(part.error, Tensor) else torch.full((part.documents,), part.error)
        for part in parts
    ]
    return torch.cat(full)


def _candidates_of(rough: BlockScores, context: int, k: int, bound: _Bound) -> Tensor:
    """Rows [c], ascending, on the CPU, whose upper bound reaches the k-th best lower bound.

    Only blocks whose maximum is among the k best can raise that lower bound, and only those whose
    maximum comes near it can hold such a document: no other block is read.
    """
    blocks, maxima = rough.blocks[context], rough.maxima[context]
    high = maxima.topk(min(k, len(maxima))).values[-1]
    first = (maxima >= high).nonzero().squeeze(1)
    lower = blocks[first] - bound.of_blocks(context, first)
    least = lower.flatten().topk(k).values[-1]
    near = (maxima >= least - bound.largest(context)).nonzero().squeeze(1)
    scores = blocks[near]
    upper = scores + bound.of_blocks(context, near)
    block, place = ((upper >= least) & (scores > -math.inf)).nonzero().unbind(1)
    return (near[block] * blocks.shape[1] + place).cpu()


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
    device, contexts = query.device, query_cu.shape[0] - 1
    documents, which = row, torch.arange(row.shape[0])
    if contexts > 1:
        documents, which = map(torch.from_numpy, np.unique(row.numpy(), return_inverse=True))
    counts = keys.chunk_cu[documents + 1] - keys.chunk_cu[documents]
    wide = keys.full[chunks_of(documents, keys.chunk_cu)].to(device).double()
    query, query_cu, cu = query.double(), query_cu.to(device), cumulative(counts)
    if not scoring.scores_chunks:
        bank = query_cu.new_zeros(contexts), query_cu.new_tensor([0, documents.shape[0]])
        scores = scoring.document_scores(query, query_cu, wide, cu.to(device), *bank)
        return scores.cpu()[context, which].float()
    if contexts == 1:
        chunks, entry_cu = torch.arange(wide.shape[0]), cu[[0, -1]]
    else:
        counts = counts[which]
        chunks = chunks_of(which, cu)
        entry_cu = cumulative(counts.new_zeros(contexts).index_add_(0, context, counts))
    given = chunks.to(device), entry_cu.to(device)
    scores = scoring.chunk_scores(query, query_cu, wide, *given).cpu().numpy()
    found, present = np.full(row.shape, -math.inf, np.float32), (counts > 0).numpy()
    if present.any():  # reduceat knows no empty documents
        starts = (counts.cumsum(0) - counts).numpy()[present]
        found[present] = np.maximum.reduceat(scores, starts)
    return torch.from_numpy(found)
