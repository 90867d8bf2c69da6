"""Which documents may be among the best, when scores are known up to a bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from msa_kernels import BlockScores
from torch import Tensor

_SUMS = 128  # roundings of a float32 sum beyond one per product


@dataclass(frozen=True)
class Doubts:
    """By how much rough scores can be off: length of the query times (error + sums).

    longest [m]: of each context's query vectors; errors: of keys, per part one number or [n];
    worst: the largest of them; sums: what adding products in float32 can lose.
    """

    longest: Tensor
    errors: list[Tensor]
    sums: float
    worst: float

    @classmethod
    def of(
        cls, query: Tensor, query_cu: Tensor, errors: Sequence[Tensor | float], norm: float
    ) -> Doubts:
        """query [Nq, V] of m contexts; errors: as LayerKeys has them; norm: no key is longer."""
        found = [torch.as_tensor(each) for each in errors]
        worst = max(float(each.max()) if each.numel() else 0.0 for each in found)
        sums = (query.shape[1] + _SUMS) * 2.0**-23 * norm
        return cls(_longest(query.float(), query_cu) * (1 + 1e-5), found, sums, worst)


def within_reach(rough: list[BlockScores], k: int, doubts: Doubts) -> tuple[Tensor, Tensor]:
    """(context, row) of every document that may be among its context's k best, on the CPU.

    rough: of consecutive parts of the documents; rows count through them.
    """
    found = []
    for context, longest in enumerate(doubts.longest.tolist()):
        rows = _rows_within_reach(rough, context, k, doubts, longest)
        found.append(torch.stack([torch.full_like(rows, context), rows]))
    context, row = torch.cat(found, 1)
    return context, row


def _rows_within_reach(
    rough: list[BlockScores], context: int, k: int, doubts: Doubts, longest: float
) -> Tensor:
    """Rows, ascending, whose upper bound reaches the k-th best lower bound.

    Only blocks whose maximum is among the k best can raise that bound, and only those whose
    maximum comes near it can hold such a document: the others are not looked into.
    """

    def doubt(part: int, rows: slice) -> Tensor | float:
        error = doubts.errors[part]
        if not error.dim():
            return longest * (float(error) + doubts.sums)
        return longest * (error[rows] + doubts.sums)

    maxima = torch.cat([each.maxima[context] for each in rough])
    high = float(maxima.topk(min(k, len(maxima))).values[-1])
    lower = [scores - doubt(*where) for where, scores in _blocks(rough, context, high)]
    least = float(torch.cat(lower).topk(k).values[-1])
    starts = torch.tensor([0, *(each.scores.shape[1] for each in rough)]).cumsum(0).tolist()
    found = [torch.zeros(0, dtype=torch.int64)]
    largest = longest * (doubts.worst + doubts.sums)
    for (part, rows), scores in _blocks(rough, context, least - largest):
        near = (scores + doubt(part, rows) >= least) & (scores > -math.inf)
        found.append(near.nonzero().squeeze(1).cpu() + (starts[part] + rows.start))
    return torch.cat(found)


def _blocks(
    rough: list[BlockScores], context: int, least: float
) -> Iterator[tuple[tuple[int, slice], Tensor]]:
    """((part, rows), scores) of the blocks whose maximum is so high; neighbours as one."""
    for part, each in enumerate(rough):
        chosen = (each.maxima[context] >= least).nonzero().squeeze(1).cpu()
        if not len(chosen):
            continue
        breaks = (chosen.diff() > 1).nonzero().squeeze(1)
        firsts = torch.cat([chosen[:1], chosen[breaks + 1]])
        lasts = torch.cat([chosen[breaks], chosen[-1:]])
        edges = each.edges
        for first, end in zip(edges[firsts].tolist(), edges[lasts + 1].tolist(), strict=True):
            yield (part, slice(first, end)), each.scores[context, first:end]


def _longest(query: Tensor, query_cu: Tensor) -> Tensor:
    """[m] length of each context's longest query vector."""
    lengths = query.flatten(1).norm(dim=1)
    contexts = torch.arange(len(query_cu) - 1, device=query.device)
    longest = lengths.new_zeros(len(query_cu) - 1)
    longest.scatter_reduce_(0, contexts.repeat_interleave(query_cu.diff()), lengths, "amax")
    return longest
