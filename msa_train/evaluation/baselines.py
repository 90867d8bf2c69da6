"""BM25 over the very bank the model reads: what word overlap alone achieves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Query
from msa_train.evaluation.metrics import RECALL_AT, Columns, recall_columns


def bm25_recalls(
    bm25: BM25, part: np.ndarray, numbers: np.ndarray, queries: Sequence[Query]
) -> Columns:
    """bm25_recall@k over the bank of the texts at `part`; numbers [texts]: document numbers."""
    ranked = bm25.rank(part, [query.question for query in queries], max(RECALL_AT))
    return recall_columns(numbers[ranked].tolist(), queries, "bm25_")
