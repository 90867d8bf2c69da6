"""Real text: held-out questions about the Python standard library, in a bank of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.mixture import DataConfig
from data_pipeline.schema import Query
from data_pipeline.sources.base import Bank
from data_pipeline.sources.pydocs import PydocsSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import EvaluationConfig
from msa_train.evaluation.asking import Asker, bm25_columns
from msa_train.evaluation.baselines import BM25
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.report import summarise


def pydocs_bank(config: EvaluationConfig, data: DataConfig, tokenizer: Tokenizer) -> Bank:
    """All documents, and evaluation.pydocs_questions (or all there are) about held-out ones."""
    source = PydocsSource(data.pydocs, tokenizer, data.numbers)
    rng = np.random.default_rng((config.seed, 1))
    bank = source.whole_bank(rng, "held_out")
    chosen = rng.permutation(len(bank.queries))[: config.pydocs_questions]
    return Bank(bank.documents, tuple(bank.queries[place] for place in chosen))


def evaluate_pydocs(
    queries: Sequence[Query], memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[str, Any]:
    """The report's section pydocs."""
    asker.progress.describe("pydocs")
    view = memory.view()
    bm25 = BM25([document.text for document in memory.documents])
    ranked = bm25.rank(np.arange(len(view)), [query.question for query in queries], 16)
    columns = asker.routing(view, queries)
    columns |= bm25_columns(ranked, np.array(memory.numbers), queries)
    some = queries[: config.text_questions]
    columns |= asker.from_memory(view, some) | asker.with_texts(view, some)
    return summarise(columns, config.resamples, config.seed) | {
        "questions": len(queries),
        "documents": len(view),
        "memory_tokens": int(memory.tokens.sum()),
    }


def asked_in_all(queries: Sequence[Query], config: EvaluationConfig) -> int:
    """Questions that evaluate_pydocs asks, for a progress bar."""
    return len(queries) + 2 * min(config.text_questions, len(queries))
