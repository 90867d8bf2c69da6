"""Selection: the best documents, and the chunks they consist of (SPEC section 2, "Selection")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.ragged import cumulative, repeated


def top_documents(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best documents of each context; equal scores go to the lower document.

    scores [m, n] -> values [m, k'], index [m, k'] int64, k' = min(k, n), best first. Where fewer
    exist (score -inf): value -inf, index -1. Raises KernelError for k < 1.
    """
    dispatch.check_positive("top_documents", "k", k)
    with torch.no_grad():
        count = min(k, scores.shape[1])
        values, index = scores.topk(min(count + 1, scores.shape[1]), 1)
        if values.shape[1] > count:
            # Only a tie between the last in and the first out needs another look.
            last, out = values[:, count - 1], values[:, count]
            tied = ((last == out) & (last > -math.inf)).nonzero().squeeze(1).tolist()
            values, index = values[:, :count].clone(), index[:, :count].clone()
            for row in tied:
                values[row], index[row] = _top_of_row(scores[row], values[row, -1], count)
        index, order = index.sort(1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        return values, index.gather(1, order).masked_fill(values == -math.inf, -1)


def _top_of_row(scores: Tensor, threshold: Tensor, count: int) -> tuple[Tensor, Tensor]:
    candidates = (scores >= threshold).nonzero().squeeze(1)
    values, order = scores[candidates].sort(descending=True, stable=True)
    return values[:count], candidates[order[:count]]


def select_chunks(index: Tensor, chunk_cu: Tensor) -> tuple[Tensor, Tensor]:
    """All chunks of the selected documents, documents ascending within a context.

    index [m, k'] documents, -1 for none; chunk_cu [n+1] -> (chunk_index [S] int64, index_cu [m+1]).
    """
    dispatch.check_cumulative("select_chunks", "chunk_cu", chunk_cu)
    ordered = index.sort(1).values
    exists = ordered >= 0
    documents = ordered[exists]
    starts = chunk_cu[documents]
    counts = chunk_cu[documents + 1] - starts
    entry_cu = cumulative(counts)
    place = torch.arange(int(entry_cu[-1]), device=index.device)
    chunks = place + repeated(starts - entry_cu[:-1], counts)
    return chunks, entry_cu[cumulative(exists.sum(1))]
