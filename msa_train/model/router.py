"""The router: documents selected by their scores (scoring.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from msa_kernels import select_chunks, top_documents
from torch import Tensor

from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Routing:
    """What one router layer chose for m contexts.

    documents [m, <=K] best first (-1 where fewer exist); values [m, <=K] their scores;
    chunk_index [S] with index_cu [m+1]: all chunks of the selected documents; chunk_scores [S]
    float32, what the gate weighs (None without gate); document_scores [m, n] float32, -inf outside
    a context's bank (None when a search returned only the best); best_chunks() [m, <=K], on the
    CPU: which of its chunks a selected document scored by (None where nobody asked); query: the
    query vectors scored, packed by query_cu [m+1].
    """

    query: Tensor
    query_cu: Tensor
    documents: Tensor
    values: Tensor
    chunk_index: Tensor
    index_cu: Tensor
    chunk_scores: Tensor | None
    document_scores: Tensor | None = None
    best_chunks: Callable[[], Tensor] | None = None


def route(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    chunk_cu: Tensor,
    ctx_bank: Tensor,
    bank_cu: Tensor,
    router: RouterConfig,
) -> Routing:
    """Score every document of each context's bank, select the best K. Shapes: see Routing."""
    scoring = router.scoring
    scores = scoring.document_scores(query, query_cu, keys, chunk_cu, ctx_bank, bank_cu)
    with torch.no_grad():
        values, documents = top_documents(scores, router.top_k)
        index, index_cu = select_chunks(documents, chunk_cu)
    selected = None
    if router.gate != "none":
        selected = scoring.chunk_scores(query, query_cu, keys, index, index_cu)
    return Routing(query, query_cu, documents, values, index, index_cu, selected, scores)
