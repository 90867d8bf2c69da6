"""Needles: does the model still find and read one document when the memory grows 64-fold?

RULER's tasks over a memory in which every document is a needle, so that each one is a distractor
of every other. All tasks share one set of documents, and all lengths ask the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from data_pipeline.mixture import DataConfig
from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Query
from data_pipeline.sources.base import Bank
from data_pipeline.sources.niah import NiahSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import EvaluationConfig
from msa_train.evaluation.asking import Asker, bm25_columns, joined
from msa_train.evaluation.banks import Group, groups, ring_order
from msa_train.evaluation.baselines import BM25
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.report import relative_losses, summarise

_PROBE = 256  # documents that tell how long they are on average
_MARGIN = 1.01


def needle_bank(config: EvaluationConfig, data: DataConfig, tokenizer: Tokenizer) -> Bank:
    """Needles of all tasks in equal shares, no other documents, enough for the longest memory."""
    niah = replace(data.niah, tasks=dict.fromkeys(config.niah_tasks, 1.0), needle_share=1.0)
    source = NiahSource(niah, tokenizer, data.numbers)
    probe = source.bank(np.random.default_rng(config.seed), _PROBE)
    mean = np.mean(
        [len(tokenizer.encode_pieces(document_pieces(d.number, d.text)).tokens)
         for d in probe.documents]
    )  # fmt: skip
    documents = ceil(max(config.memory_tokens) / mean * _MARGIN)
    return source.bank(np.random.default_rng(config.seed), documents)


@dataclass(frozen=True)
class NeedleTask:
    """One task's questions, in groups that share their banks."""

    name: str
    groups: list[Group]

    @property
    def queries(self) -> list[Query]:
        return [query for group in self.groups for query in group.queries]


def needle_tasks(bank: Bank, memory: EncodedSet, config: EvaluationConfig) -> list[NeedleTask]:
    """The tasks' groups: all on one ring, so that every bank holds needles of every task."""
    ring = ring_order(bank.queries, memory.numbers)
    lengths = sorted(config.memory_tokens)
    tasks = []
    for name in config.niah_tasks:
        queries = [query for query in bank.queries if query.id.startswith(f"{name}/")]
        found = groups(queries, ring, memory.numbers, memory.tokens, lengths, config.questions)
        tasks.append(NeedleTask(name, found))
    return tasks


def evaluate_needles(
    tasks: Sequence[NeedleTask], memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[str, Any]:
    """The report's sections niah, niah_loss and niah_controls, per task."""
    bm25 = BM25([document.text for document in memory.documents])
    lengths = sorted(config.memory_tokens)
    report: dict[str, Any] = {"niah": {}, "niah_loss": {}, "niah_controls": {}}
    for task in tasks:
        columns = {}
        for length in lengths:
            asker.progress.describe(f"{task.name}, {length:,} tokens")
            columns[length] = _measure(task, length, memory, bm25, asker, config)
        report["niah"][task.name] = {
            str(length): _section(task, length, columns[length], memory, config)
            for length in lengths
        }
        report["niah_loss"][task.name] = relative_losses(
            columns[lengths[0]], columns[lengths[-1]], config.resamples, config.seed
        )
        asker.progress.describe(f"{task.name}, controls")
        report["niah_controls"][task.name] = _controls(task, lengths[0], memory, asker, config)
    return report


def asked_in_all(tasks: Sequence[NeedleTask], config: EvaluationConfig) -> int:
    """Questions that evaluate_needles asks, for a progress bar."""
    with_texts = min(config.text_questions, config.questions)
    each_task = len(config.memory_tokens) * (config.questions + with_texts) + 2 * with_texts
    return len(tasks) * each_task


def first_of_each(parts: Sequence[Group], count: int) -> list[Group]:
    """The same groups with `count` questions in all, shared out as evenly as can be."""
    left, chosen = count, []
    for place, group in enumerate(parts):
        share = ceil(left / (len(parts) - place))
        chosen.append(replace(group, queries=group.queries[:share]))
        left -= len(chosen[-1].queries)
    return [group for group in chosen if group.queries]


def _measure(
    task: NeedleTask,
    length: int,
    memory: EncodedSet,
    bm25: BM25,
    asker: Asker,
    config: EvaluationConfig,
) -> Columns:
    numbers = np.array(memory.numbers)
    every, some = [], []
    for group in task.groups:
        places = group.banks[length]
        found = asker.from_memory_with_routing(memory.view(places), group.queries)
        ranked = bm25.rank(places, [query.question for query in group.queries], 16)
        every.append(found | bm25_columns(ranked, numbers, group.queries))
    for group in first_of_each(task.groups, config.text_questions):
        some.append(asker.with_texts(memory.view(group.banks[length]), group.queries))
    return joined(every) | joined(some)


def _controls(
    task: NeedleTask, length: int, memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[str, Any]:
    """Answers in the smallest bank without a memory, and with a router that leads astray."""
    asked = first_of_each(task.groups, config.text_questions)
    nothing = [asker.from_memory(memory.nothing(), group.queries) for group in asked]
    astray = [
        asker.from_memory(
            memory.part(group.banks[length]).misrouted(config.seed).view(), group.queries
        )
        for group in asked
    ]
    return {
        name: summarise(joined(parts), config.resamples, config.seed) | {"memory_tokens": length}
        for name, parts in (("no_memory", nothing), ("random_router", astray))
    }


def _section(
    task: NeedleTask,
    length: int,
    columns: Columns,
    memory: EncodedSet,
    config: EvaluationConfig,
) -> dict[str, Any]:
    banks = [group.banks[length] for group in task.groups]
    return summarise(columns, config.resamples, config.seed) | {
        "questions": len(task.queries),
        "banks": len(banks),
        "documents": float(np.mean([len(places) for places in banks])),
        "memory_tokens": float(np.mean([memory.tokens[places].sum() for places in banks])),
    }
