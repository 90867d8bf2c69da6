"""One bank that is asked as a whole: every held-out question of a source, beside BM25."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Query
from data_pipeline.sources.base import HeldOutBank
from msa_train.config import EvaluationConfig
from msa_train.evaluation.asking import Asker, bm25_recalls, joined
from msa_train.evaluation.encoded_bank import EncodedBank
from msa_train.evaluation.jobs import Job, run_jobs
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.report import summarise
from msa_train.memory.search.view import MemoryView

Key = tuple[str, int]  # measure, first question


def whole_bank_section(
    name: str,
    held_out: HeldOutBank,
    asker: Asker,
    config: EvaluationConfig,
    workers: int,
) -> dict[str, Any]:
    """A section of the report: what is found, and, if its measure says so, what is answered.

    Without answers the control is measured too: a router whose keys belong to other chunks.
    """
    bank, answers = held_out.bank, held_out.measure == "answers"
    memory = EncodedBank.encode(asker.model, asker.tokenizer, bank.documents)
    results = run_jobs(_jobs(name, bank.queries, memory, answers, asker, config), workers)
    return summarise(joined(results.values()), config.resamples, config.seed) | {
        "questions": len(bank.queries),
        "documents": len(memory.documents),
        "memory_tokens": int(memory.tokens.sum()),
    }


def _jobs(
    name: str,
    queries: Sequence[Query],
    memory: EncodedBank,
    answers: bool,
    asker: Asker,
    config: EvaluationConfig,
) -> dict[Key, Job]:
    """All that is asked, by (measure, first question)."""
    view, some = memory.view(), queries[: config.text_questions]
    bm25 = BM25.of(document.text for document in memory.documents)
    asked: dict[str, tuple[Callable[[Sequence[Query]], Columns], Sequence[Query]]] = {}
    if answers:
        asked["text"] = partial(asker.with_texts, view), some
        asked["memory"] = partial(asker.from_memory, view), some
    asked["routing"] = partial(asker.routing, view), queries
    if not answers:
        asked["random"] = partial(_random, asker, memory.misrouted(config.seed).view()), queries
    asked["bm25"] = (
        partial(bm25_recalls, bm25, np.arange(len(view)), np.array(memory.numbers)),
        queries,
    )
    jobs: dict[Key, Job] = {}
    for measure, (ask, of) in asked.items():
        for first in range(0, len(of), config.batch_contexts):
            chunk = of[first : first + config.batch_contexts]
            jobs[measure, first] = Job(name, len(chunk), partial(ask, chunk))
    return jobs


def _random(asker: Asker, astray: MemoryView, queries: Sequence[Query]) -> Columns:
    voted = {k: v for k, v in asker.routing(astray, queries).items() if "/" not in k}
    return {f"random_{key}": values for key, values in voted.items()}
