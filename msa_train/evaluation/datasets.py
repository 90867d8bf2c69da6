"""Datasets: held-out questions of each, asked of a memory of its whole corpus, beside BM25."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.schema import Query
from data_pipeline.sources.base import DrawnBank, NumberConfig
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.sources.dataset_tables import prepare
from data_pipeline.sources.datasets import whole_bank
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, EvaluationConfig
from msa_train.evaluation.asking import Asker
from msa_train.evaluation.baselines import bm25_recalls
from msa_train.evaluation.jobs import Job, run_jobs
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.qa import bank_report
from msa_train.model.decoder import MSADecoder


def dataset_reports(
    model: MSADecoder, tokenizer: Tokenizer, config: Config, prepared: Path, workers: int
) -> dict[str, dict[str, Any]]:
    """The report's section datasets: one entry for each that has a held_out_split."""
    reports = {}
    for name, dataset in config.data.datasets.items():
        if dataset.held_out_split is None:
            continue
        bank = _bank(dataset, tokenizer, config.data.numbers, config.evaluation, prepared)
        memory = EncodedSet.encode(model, tokenizer, bank.documents)
        asker = Asker(model, tokenizer, config.evaluation.batch_contexts)
        results = run_jobs(_jobs(name, bank.queries, memory, asker, config.evaluation), workers)
        reports[name] = bank_report(bank.queries, memory, results, config.evaluation)
    return reports


def _bank(
    dataset: DatasetConfig,
    tokenizer: Tokenizer,
    numbers: NumberConfig,
    settings: EvaluationConfig,
    prepared: Path,
) -> DrawnBank:
    split, length = dataset.held_out_split, dataset.document_tokens
    tables = prepare(dataset, split, length, tokenizer, prepared)
    return whole_bank(tables, numbers, np.random.default_rng((settings.seed, 2)))


def _jobs(
    name: str,
    queries: Sequence[Query],
    memory: EncodedSet,
    asker: Asker,
    settings: EvaluationConfig,
) -> dict[tuple[str, int], Job]:
    """All that is asked, by (measure, first question)."""
    numbers = np.array(memory.numbers)
    bm25 = BM25([document.text for document in memory.documents])
    astray = memory.misrouted(settings.seed).view()
    asked = {
        "routing": partial(asker.routing, memory.view()),
        "random": partial(_random, asker, astray),
        "bm25": partial(bm25_recalls, bm25, np.arange(len(numbers)), numbers),
    }
    jobs = {}
    for measure, ask in asked.items():
        for first in range(0, len(queries), settings.batch_contexts):
            chunk = queries[first : first + settings.batch_contexts]
            jobs[measure, first] = Job(name, len(chunk), partial(ask, chunk))
    return jobs


def _random(asker: Asker, astray, queries: Sequence[Query]) -> Columns:
    """Control: what a router finds whose keys belong to other chunks."""
    voted = {k: v for k, v in asker.routing(astray, queries).items() if "/" not in k}
    return {f"random_{key}": values for key, values in voted.items()}
