"""Needles: does the model still find and read one document when the memory grows 64-fold?

RULER's tasks over a memory in which every document is a needle, so that each one is a distractor
of every other. All tasks share one set of documents, and all lengths ask the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.protocol import document_pieces
from data_pipeline.schema import Query
from data_pipeline.settings import DataConfig
from data_pipeline.sources.base import DrawnBank
from data_pipeline.sources.niah import NiahSource
from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, EvaluationConfig
from msa_train.evaluation.asking import Asker, joined
from msa_train.evaluation.banks import QuestionGroup, groups, ring_order
from msa_train.evaluation.baselines import bm25_recalls
from msa_train.evaluation.jobs import Job, run_jobs
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.report import relative_losses, summarise
from msa_train.memory.search.view import MemoryView

Key = tuple[str, int | str, str, int]  # task, length or control, measure, group
Measure = Callable[[MemoryView, Sequence[Query]], Columns]
CONTROLS = ("no_memory", "random_router")
_PROBE = 256  # documents that tell how long they are on average
_MARGIN = 1.01


def needle_bank(config: EvaluationConfig, data: DataConfig, tokenizer: Tokenizer) -> DrawnBank:
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
    groups: list[QuestionGroup]

    @property
    def queries(self) -> list[Query]:
        return [query for group in self.groups for query in group.queries]


def needle_tasks(bank: DrawnBank, memory: EncodedSet, config: EvaluationConfig) -> list[NeedleTask]:
    """The tasks' groups: all on one ring, so that every bank holds needles of every task."""
    ring = ring_order(bank.queries, memory.numbers)
    lengths = sorted(config.memory_tokens)
    tasks = []
    for name in config.niah_tasks:
        queries = [query for query in bank.queries if query.id.startswith(f"{name}/")]
        found = groups(queries, ring, memory.numbers, memory.tokens, lengths, config.questions)
        tasks.append(NeedleTask(name, found))
    return tasks


def needle_jobs(
    tasks: Sequence[NeedleTask], memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[Key, Job]:
    """All that is asked, by (task, length or control, measure, group)."""
    bm25 = BM25([document.text for document in memory.documents])
    jobs: dict[Key, Job] = {}
    for task in tasks:
        # The longest memory first: what is left at the end, when workers run dry, is short.
        for length in sorted(config.memory_tokens, reverse=True):
            jobs |= _length_jobs(task, length, memory, bm25, asker, config)
        jobs |= _control_jobs(task, min(config.memory_tokens), memory, asker, config)
    return jobs


def needle_section(asker: Asker, config: Config, workers: int) -> dict[str, Any]:
    """The report's needle sections."""
    settings = config.evaluation
    bank = needle_bank(settings, config.data, asker.tokenizer)
    memory = EncodedSet.encode(asker.model, asker.tokenizer, bank.documents)
    tasks = needle_tasks(bank, memory, settings)
    results = run_jobs(needle_jobs(tasks, memory, asker, settings), workers)
    return needle_report(tasks, memory, results, settings)


def needle_report(
    tasks: Sequence[NeedleTask],
    memory: EncodedSet,
    results: Mapping[Key, Columns],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The report's sections niah, niah_loss and niah_controls, per task."""
    report: dict[str, Any] = {"niah": {}, "niah_loss": {}, "niah_controls": {}}
    lengths = sorted(config.memory_tokens)
    draws = (config.resamples, config.seed)
    for task in tasks:
        columns = {length: _collected(results, task.name, length) for length in lengths}
        report["niah"][task.name] = {
            str(length): summarise(columns[length], *draws) | _sizes(task, length, memory)
            for length in lengths
        }
        report["niah_loss"][task.name] = relative_losses(
            columns[lengths[0]], columns[lengths[-1]], *draws
        )
        report["niah_controls"][task.name] = {
            control: summarise(_collected(results, task.name, control), *draws)
            | {"memory_tokens": lengths[0]}
            for control in CONTROLS
        }
    return report


def whole_groups(parts: Sequence[QuestionGroup], count: int) -> list[QuestionGroup]:
    """Groups, evenly spaced, with `count` questions in all (or all there are); the last is cut.

    Whole groups, because questions of one bank are answered together.
    """
    for taken in range(1, len(parts) + 1):
        chosen = [parts[i * len(parts) // taken] for i in range(taken)]
        if sum(len(group.queries) for group in chosen) >= count:
            break
    left, kept = count, []
    for group in chosen:
        kept.append(replace(group, queries=group.queries[:left]))
        left -= len(kept[-1].queries)
    return [group for group in kept if group.queries]


def _length_jobs(
    task: NeedleTask,
    length: int,
    memory: EncodedSet,
    bm25: BM25,
    asker: Asker,
    config: EvaluationConfig,
) -> dict[Key, Job]:
    part, jobs = f"{task.name}, {length:,} tokens", {}
    for number, group in enumerate(whole_groups(task.groups, config.text_questions)):
        for name, measure in (("text", asker.with_texts), ("voted", asker.with_voted_texts)):
            ask = partial(_ask, measure, memory, group, length)
            jobs[task.name, length, name, number] = Job(part, len(group.queries), ask)
    for number, group in enumerate(task.groups):
        ask = partial(_ask, asker.from_memory_with_routing, memory, group, length)
        jobs[task.name, length, "memory", number] = Job(part, len(group.queries), ask)
    search = partial(_search, bm25, memory, task.groups, length)
    jobs[task.name, length, "bm25", 0] = Job(part, len(task.queries), search)
    return jobs


def _control_jobs(
    task: NeedleTask, length: int, memory: EncodedSet, asker: Asker, config: EvaluationConfig
) -> dict[Key, Job]:
    """Answers in the smallest bank without a memory, and with a router that leads astray."""
    jobs: dict[Key, Job] = {}
    for number, group in enumerate(whole_groups(task.groups, config.text_questions)):
        for control in CONTROLS:
            ask = partial(_ask_control, control, asker, memory, group, length, config.seed)
            part = f"{task.name}, {control.replace('_', ' ')}"
            jobs[task.name, control, "memory", number] = Job(part, len(group.queries), ask)
    return jobs


def _ask(measure: Measure, memory: EncodedSet, group: QuestionGroup, length: int) -> Columns:
    return measure(memory.view(group.banks[length]), group.queries)


def _ask_control(
    control: str, asker: Asker, memory: EncodedSet, group: QuestionGroup, length: int, seed: int
) -> Columns:
    if control == "no_memory":
        return asker.from_memory(memory.nothing(), group.queries)
    astray = memory.part(group.banks[length]).misrouted(seed)
    return asker.from_memory(astray.view(), group.queries)


def _search(bm25: BM25, memory: EncodedSet, asked: Sequence[QuestionGroup], length: int) -> Columns:
    numbers = np.array(memory.numbers)
    return joined([bm25_recalls(bm25, g.banks[length], numbers, g.queries) for g in asked])


def _collected(results: Mapping[Key, Columns], task: str, which: int | str) -> Columns:
    """All measures of a length or control, over the questions of all groups."""
    found: dict[str, list[Columns]] = {}
    for (name, part, measure, _), columns in results.items():
        if (name, part) == (task, which):
            found.setdefault(measure, []).append(columns)
    return {name: column for parts in found.values() for name, column in joined(parts).items()}


def _sizes(task: NeedleTask, length: int, memory: EncodedSet) -> dict[str, Any]:
    banks = [group.banks[length] for group in task.groups]
    return {
        "questions": len(task.queries),
        "banks": len(banks),
        "documents": float(np.mean([len(places) for places in banks])),
        "memory_tokens": float(np.mean([memory.tokens[places].sum() for places in banks])),
    }
