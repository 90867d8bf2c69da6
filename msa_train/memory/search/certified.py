"""Which documents may be among the best, when scores are known up to a bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from msa_kernels import BlockScores
from torch import Tensor

_SUMS = 128  # roundings of a float32 sum beyond one per product


@dataclass(frozen=True)
class Doubts:
    """By how much rough scores can be off: length of the query times (error + sums).

    longest [m]: of each context's query vectors; error: of keys, one number or [n]; sums: what
    adding products in float32 can lose.
    """

    longest: Tensor
    error: Tensor
    sums: float

    @classmethod
    def of(cls, query: Tensor, query_cu: Tensor, error: Tensor, norm: float) -> Doubts:
        """query [Nq, V] of m contexts; error: as Doubts has it; norm: no key is longer."""
        sums = (query.shape[1] + _SUMS) * 2.0**-23 * norm
        return cls(_longest(query.float(), query_cu) * (1 + 1e-5), error, sums)

    def of_rows(self, longest: float, rows: slice) -> Tensor:
        return longest * ((self.error[rows] if self.error.dim() else self.error) + self.sums)

    def largest(self, longest: float) -> float:
        return longest * ((float(self.error.max()) if self.error.numel() else 0.0) + self.sums)


def within_reach(rough: BlockScores, k: int, doubts: Doubts) -> tuple[Tensor, Tensor]:
    """(context, row) of every document that may be among its context's k best, on the CPU."""
    found = []
    for context, longest in enumerate(doubts.longest.tolist()):
        rows = _rows_within_reach(rough, context, k, doubts, longest)
        found.append(torch.stack([torch.full_like(rows, context), rows]))
    context, row = torch.cat(found, 1)
    return context, row


def _rows_within_reach(
    rough: BlockScores, context: int, k: int, doubts: Doubts, longest: float
) -> Tensor:
    """Rows, ascending, whose upper bound reaches the k-th best lower bound.

    Only blocks whose maximum is among the k best can raise that bound, and only those whose
    maximum comes near it can hold such a document: the others are not looked into.
    """
    maxima = rough.maxima[context]
    high = float(maxima.topk(min(k, len(maxima))).values[-1])
    lower = [
        scores - doubts.of_rows(longest, rows).to(scores.device)
        for rows, scores in _blocks(rough, context, high)
    ]
    least = float(torch.cat(lower).topk(k).values[-1])
    found = [torch.zeros(0, dtype=torch.int64)]
    for rows, scores in _blocks(rough, context, least - doubts.largest(longest)):
        upper = scores + doubts.of_rows(longest, rows).to(scores.device)
        near = (upper >= least) & (scores > -math.inf)
        found.append(near.nonzero().squeeze(1).cpu() + rows.start)
    return torch.cat(found)


def _blocks(rough: BlockScores, context: int, least: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, scores) of the blocks whose maximum is so high; neighbours as one."""
    chosen = (rough.maxima[context] >= least).nonzero().squeeze(1).cpu()
    if not len(chosen):
        return
    breaks = (chosen.diff() > 1).nonzero().squeeze(1)
    firsts = torch.cat([chosen[:1], chosen[breaks + 1]])
    lasts = torch.cat([chosen[breaks], chosen[-1:]])
    edges = rough.edges
    for first, end in zip(edges[firsts].tolist(), edges[lasts + 1].tolist(), strict=True):
        yield slice(first, end), rough.scores[context, first:end]


def _longest(query: Tensor, query_cu: Tensor) -> Tensor:
    """[m] length of each context's longest query vector."""
    lengths = query.flatten(1).norm(dim=1)
    contexts = torch.arange(len(query_cu) - 1, device=query.device)
    longest = lengths.new_zeros(len(query_cu) - 1)
    longest.scatter_reduce_(0, contexts.repeat_interleave(query_cu.diff()), lengths, "amax")
    return longest
