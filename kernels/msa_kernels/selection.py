"""Selection: the best documents, and the chunks they consist of (SPEC section 2, "Selection")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.ragged import cumulative, repeated

KEYED = 1 << 24  # scores whose keys of twice their size are made: those of a training step


def top_documents(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best documents of each context; equal scores go to the lower document.

    scores [m, n] -> values [m, k'], index [m, k'] int64, k' = min(k, n), best first. Where fewer
    exist (score -inf): value -inf, index -1. Raises KernelError for k < 1.
    """
    dispatch.check_positive("top_documents", "k", k)
    with torch.no_grad():
        count = min(k, scores.shape[1])
        if not dispatch.can_inspect(scores) and scores.numel() <= KEYED and scores.itemsize <= 4:
            return _top_by_keys(scores, count)
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


def _top_by_keys(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """top_documents by one integer per document, its score above the complement of its number:
    an accelerator is not asked whether any two are equal."""
    # Zero has two forms, which are equal.
    bits = (scores.float() + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    document = torch.arange(scores.shape[1], device=scores.device)
    index = ((ordered << 32) | (0xFFFFFFFF - document)).topk(count, 1).indices
    values = scores.gather(1, index)
    return values, index.masked_fill(values == -math.inf, -1)


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
    documents = ordered.clamp(min=0).flatten()
    starts = chunk_cu[documents]
    counts = (chunk_cu[documents + 1] - starts) * (ordered >= 0).flatten()
    entry_cu = cumulative(counts)
    total = int(entry_cu[-1])  # all that the host has to know
    place = torch.arange(total, device=index.device)
    chunks = place + repeated(starts - entry_cu[:-1], counts, total)
    return chunks, entry_cu[torch.arange(len(index) + 1, device=index.device) * index.shape[1]]
