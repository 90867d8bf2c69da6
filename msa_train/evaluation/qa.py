"""Real text: held-out questions about the Python standard library, in a bank of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Query
from data_pipeline.settings import DataConfig
from data_pipeline.sources.base import DrawnBank
from data_pipeline.sources.pydocs import PydocsSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, EvaluationConfig
from msa_train.evaluation.asking import Asker, joined
from msa_train.evaluation.baselines import bm25_recalls
from msa_train.evaluation.jobs import Job, run_jobs
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.report import summarise

Key = tuple[str, int]  # measure, first question


def pydocs_bank(config: EvaluationConfig, data: DataConfig, tokenizer: Tokenizer) -> DrawnBank:
    """All documents, and evaluation.pydocs_questions (or all there are) about held-out ones."""
    source = PydocsSource(data.pydocs, tokenizer, data.numbers)
    rng = np.random.default_rng((config.seed, 1))
    bank = source.whole_bank(rng, "held_out")
    chosen = rng.permutation(len(bank.queries))[: config.pydocs_questions]
    return DrawnBank(bank.documents, tuple(bank.queries[place] for place in chosen))


def pydocs_jobs(
    queries: Sequence[Query], memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[Key, Job]:
    """All that is asked, by (measure, first question)."""
    view, some = memory.view(), queries[: config.text_questions]
    bm25 = BM25([document.text for document in memory.documents])
    search = partial(bm25_recalls, bm25, np.arange(len(view)), np.array(memory.numbers))
    asked = {
        "text": (partial(asker.with_texts, view), some),
        "memory": (partial(asker.from_memory, view), some),
        "routing": (partial(asker.routing, view), queries),
        "bm25": (search, queries),
    }
    jobs: dict[Key, Job] = {}
    for measure, (ask, of) in asked.items():
        for first in range(0, len(of), config.batch_contexts):
            chunk = of[first : first + config.batch_contexts]
            jobs[measure, first] = Job("pydocs", len(chunk), partial(ask, chunk))
    return jobs


def pydocs_section(asker: Asker, config: Config, workers: int) -> dict[str, Any]:
    """The report's section pydocs."""
    settings = config.evaluation
    bank = pydocs_bank(settings, config.data, asker.tokenizer)
    memory = EncodedSet.encode(asker.model, asker.tokenizer, bank.documents)
    results = run_jobs(pydocs_jobs(bank.queries, memory, asker, settings), workers)
    return bank_report(bank.queries, memory, results, settings)


def bank_report(
    queries: Sequence[Query],
    memory: EncodedSet,
    results: Mapping[Key, Columns],
    config: EvaluationConfig,
) -> dict[str, Any]:
    found: dict[str, list[Columns]] = {}
    for (measure, _), part in results.items():
        found.setdefault(measure, []).append(part)
    columns = {name: column for parts in found.values() for name, column in joined(parts).items()}
    return summarise(columns, config.resamples, config.seed) | {
        "questions": len(queries),
        "documents": len(memory.documents),
        "memory_tokens": int(memory.tokens.sum()),
    }
