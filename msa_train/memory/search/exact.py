"""Scores of single documents from the stored keys: float64, rounded to float32.

They do not depend on what else is scored, on the form in which keys are searched, or on ranks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_train.model.config import RouterConfig

_BYTES = 32 << 20  # of keys that are scored at once


def pair_scores(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    context: Tensor,
    row: Tensor,
    router: RouterConfig,
) -> Tensor:
    """[P] float32 scores, on the CPU, of pairs of a context (ascending) and a document, by row.

    query [Nq, V] of m contexts; keys [C, V] as they are stored, chunk_cu [n+1].
    """
    device, contexts = query.device, len(query_cu) - 1
    documents, which = row.unique(return_inverse=True)
    counts = chunk_cu[documents + 1] - chunk_cu[documents]
    cu = F.pad(counts.cumsum(0), (1, 0))
    wide = keys[rows_of(documents, chunk_cu)].to(device).double()
    query, query_cu = query.double(), query_cu.to(device)
    if not router.scoring.scores_chunks:
        bank = query_cu.new_zeros(contexts), query_cu.new_tensor([0, len(documents)])
        scores = router.scoring.document_scores(query, query_cu, wide, cu.to(device), *bank)
        return scores.cpu()[context, which].float()
    entries = counts.new_zeros(contexts).index_add_(0, context, counts[which])
    entry_cu = F.pad(entries.cumsum(0), (1, 0)).to(device)
    chunks = rows_of(which, cu).to(device)
    scores = router.scoring.chunk_scores(query, query_cu, wide, chunks, entry_cu).cpu()
    pair = torch.arange(len(row)).repeat_interleave(counts[which])
    best = scores.new_full((len(row),), -math.inf)
    return best.scatter_reduce_(0, pair, scores, "amax").float()


def rows_of(documents: Tensor, chunk_cu: Tensor) -> Tensor:
    """Numbers of all chunks of some documents, document by document."""
    starts = chunk_cu[documents]
    counts = chunk_cu[documents + 1] - starts
    ends = counts.cumsum(0)
    place = torch.arange(int(ends[-1]) if len(ends) else 0)
    return place + (starts - ends + counts).repeat_interleave(counts)


def pairs_at_once(longest: int, width: int) -> int:
    """Pairs of which so much can be scored at once: documents of at most `longest` chunks."""
    return max(1, _BYTES // (8 * max(1, longest) * width))
