"""Nested banks: does the model still find and read one document when the memory grows 64-fold?

All tasks share one set of documents, encoded once and as long as the longest memory asked for, and
all lengths ask the same questions. The set is laid out as a ring in which the documents of one
question are neighbours. The bank of L tokens of a group is the run of consecutive documents from
the group's first document that holds L tokens, so that a group's longer banks contain its shorter
ones. (Inside a bank documents stand by number, as everywhere.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from data_pipeline.bm25 import BM25
from data_pipeline.errors import DataError
from data_pipeline.schema import Query
from data_pipeline.sources.base import DrawnBank, HeldOutBank
from msa_train.config import EvaluationConfig
from msa_train.evaluation.asking import Asker, bm25_recalls, joined
from msa_train.evaluation.encoded_bank import EncodedBank
from msa_train.evaluation.jobs import Job, run_jobs
from msa_train.evaluation.metrics import Columns
from msa_train.evaluation.report import relative_losses, summarise
from msa_train.memory.search.view import MemoryView

T = TypeVar("T")
Key = tuple[str, int | str, str, int]  # task, length or control, measure, group
Measure = Callable[[MemoryView, Sequence[Query]], Columns]
CONTROLS = ("no_memory", "random_router")


@dataclass(frozen=True)
class QuestionGroup:
    """Questions that share their banks.

    banks: memory tokens -> places [n] of the bank's documents in the set, ascending.
    """

    queries: tuple[Query, ...]
    banks: dict[int, np.ndarray]


@dataclass(frozen=True)
class NestedTask:
    """One task's questions, in groups that share their banks."""

    name: str
    groups: list[QuestionGroup]

    @property
    def queries(self) -> list[Query]:
        return [query for group in self.groups for query in group.queries]


def nested_tasks(
    names: Sequence[str], bank: DrawnBank, memory: EncodedBank, config: EvaluationConfig
) -> list[NestedTask]:
    """The tasks' groups: all on one ring, so that every bank holds documents of every task.

    A question belongs to the task that its id begins with, as in `single/...`.
    """
    ring = ring_order(bank.queries, memory.numbers)
    lengths = sorted(config.memory_tokens)
    tasks = []
    for name in names:
        queries = [query for query in bank.queries if query.id.startswith(f"{name}/")]
        found = groups(queries, ring, memory.numbers, memory.tokens, lengths, config.questions)
        tasks.append(NestedTask(name, found))
    return tasks


def nested_jobs(
    tasks: Sequence[NestedTask], memory: EncodedBank, asker: Asker, config: EvaluationConfig
) -> dict[Key, Job]:
    """All that is asked, by (task, length or control, measure, group)."""
    bm25 = BM25.of(document.text for document in memory.documents)
    jobs: dict[Key, Job] = {}
    for task in tasks:
        # The longest memory first: what is left at the end, when workers run dry, is short.
        for length in sorted(config.memory_tokens, reverse=True):
            jobs |= _length_jobs(task, length, memory, bm25, asker, config)
        jobs |= _control_jobs(task, min(config.memory_tokens), memory, asker, config)
    return jobs


def nested_sections(
    name: str,
    held_out: HeldOutBank,
    asker: Asker,
    config: EvaluationConfig,
    workers: int,
) -> dict[str, Any]:
    """The report's sections NAME, NAME_loss and NAME_controls, per task."""
    memory = EncodedBank.encode(asker.model, asker.tokenizer, held_out.bank.documents)
    tasks = nested_tasks(held_out.tasks, held_out.bank, memory, config)
    results = run_jobs(nested_jobs(tasks, memory, asker, config), workers)
    found, losses, controls = {}, {}, {}
    lengths = sorted(config.memory_tokens)
    draws = (config.resamples, config.seed)
    for task in tasks:
        columns = {length: _collected(results, task.name, length) for length in lengths}
        found[task.name] = {
            str(length): summarise(columns[length], *draws) | _sizes(task, length, memory)
            for length in lengths
        }
        losses[task.name] = relative_losses(columns[lengths[0]], columns[lengths[-1]], *draws)
        controls[task.name] = {
            control: summarise(_collected(results, task.name, control), *draws)
            | {"memory_tokens": lengths[0]}
            for control in CONTROLS
        }
    return {name: found, f"{name}_loss": losses, f"{name}_controls": controls}


def whole_groups(parts: Sequence[QuestionGroup], count: int) -> list[QuestionGroup]:
    """Groups, evenly spaced, with `count` questions in all (or all there are); the last is cut.

    Whole groups, because questions of one bank are answered together.
    """
    left, kept = count, []
    for group in _spread(parts, count, lambda group: len(group.queries)):
        kept.append(replace(group, queries=group.queries[:left]))
        left -= len(kept[-1].queries)
    return [group for group in kept if group.queries]


def _length_jobs(
    task: NestedTask,
    length: int,
    memory: EncodedBank,
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
    task: NestedTask, length: int, memory: EncodedBank, asker: Asker, config: EvaluationConfig
) -> dict[Key, Job]:
    """Answers in the smallest bank without a memory, and with a router that leads astray."""
    jobs: dict[Key, Job] = {}
    for number, group in enumerate(whole_groups(task.groups, config.text_questions)):
        for control in CONTROLS:
            ask = partial(_ask_control, control, asker, memory, group, length, config.seed)
            part = f"{task.name}, {control.replace('_', ' ')}"
            jobs[task.name, control, "memory", number] = Job(part, len(group.queries), ask)
    return jobs


def _ask(measure: Measure, memory: EncodedBank, group: QuestionGroup, length: int) -> Columns:
    return measure(memory.view(group.banks[length]), group.queries)


def _ask_control(
    control: str, asker: Asker, memory: EncodedBank, group: QuestionGroup, length: int, seed: int
) -> Columns:
    if control == "no_memory":
        return asker.from_memory(memory.nothing(), group.queries)
    astray = memory.part(group.banks[length]).misrouted(seed)
    return asker.from_memory(astray.view(), group.queries)


def _search(
    bm25: BM25, memory: EncodedBank, asked: Sequence[QuestionGroup], length: int
) -> Columns:
    numbers = np.array(memory.numbers)
    return joined(bm25_recalls(bm25, g.banks[length], numbers, g.queries) for g in asked)


def _collected(results: Mapping[Key, Columns], task: str, which: int | str) -> Columns:
    """All measures of a length or control, over the questions of all groups."""
    return joined(columns for key, columns in results.items() if key[:2] == (task, which))


def _sizes(task: NestedTask, length: int, memory: EncodedBank) -> dict[str, Any]:
    banks = [group.banks[length] for group in task.groups]
    return {
        "questions": len(task.queries),
        "banks": len(banks),
        "documents": float(np.mean([len(places) for places in banks])),
        "memory_tokens": float(np.mean([memory.tokens[places].sum() for places in banks])),
    }


def window(document_tokens: np.ndarray, first: int, tokens: int) -> np.ndarray:
    """The fewest consecutive ring positions from `first` on that hold `tokens`, in that order.

    document_tokens [n], in ring order. All documents where they hold fewer.
    """
    n = len(document_tokens)
    held = np.cumsum(np.roll(document_tokens, -first))
    count = min(int(np.searchsorted(held, tokens)) + 1, n)
    return (first + np.arange(count)) % n


def ring_order(queries: Sequence[Query], numbers: Sequence[int]) -> np.ndarray:
    """[n] places of documents such that those of one question are neighbours.

    numbers [n] of the documents, by place. Questions in their order, then what nobody asks.
    """
    place_of = {number: place for place, number in enumerate(numbers)}
    wanted = [place_of[number] for query in queries for number in query.positives]
    return np.array(list(dict.fromkeys([*wanted, *place_of.values()])))


def groups(
    queries: Sequence[Query],
    ring: np.ndarray,
    numbers: Sequence[int],
    document_tokens: np.ndarray,
    lengths: Sequence[int],
    questions: int,
) -> list[QuestionGroup]:
    """Groups, evenly spread over the ring, that ask `questions` questions together.

    ring [n]: see ring_order; numbers, document_tokens [n]: of the set's documents, by place. A
    group asks all questions whose positives lie in its smallest bank; the smallest banks do not
    overlap, so nothing is asked twice. Raises DataError where the set holds too few questions.
    """
    place_of = {number: place for place, number in enumerate(numbers)}
    tokens = np.asarray(document_tokens)[ring]
    usable = _with_questions(queries, place_of, ring, _disjoint(tokens, min(lengths)))
    chosen, total = [], 0
    for first, asked in _spread(usable, questions, lambda window: len(window[1])):
        if not (asked := asked[: questions - total]):
            break  # the groups before this one happened to be rich
        total += len(asked)
        banks = {length: np.sort(ring[window(tokens, first, length)]) for length in lengths}
        chosen.append(QuestionGroup(tuple(asked), banks))
    if total < questions:
        raise DataError(
            f"evaluation.questions is {questions}: the documents of evaluation.memory_tokens "
            f"{max(lengths)} have only {total} questions whose answers lie in one bank of "
            f"{min(lengths)} tokens; ask fewer questions or lengthen the longest memory"
        )
    return chosen


def _disjoint(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Windows of `length` one after another; at least one, even where the set is shorter."""
    windows = [window(tokens, 0, length)]
    while (first := int(windows[-1][-1]) + 1) < len(tokens):
        following = window(tokens, first, length)
        if following[-1] < first:  # wrapped around: it would share documents with the first one
            break
        windows.append(following)
    return windows


def _with_questions(
    queries: Sequence[Query],
    place_of: dict[int, int],
    ring: np.ndarray,
    windows: list[np.ndarray],
) -> list[tuple[int, list[Query]]]:
    """(first ring position, questions whose positives all lie inside) of each window with any."""
    window_of = np.full(len(ring), -1)  # by place
    for number, positions in enumerate(windows):
        window_of[ring[positions]] = number
    inside: list[list[Query]] = [[] for _ in windows]
    for query in queries:
        homes = {int(window_of[place_of[number]]) for number in query.positives}
        if len(homes) == 1 and (home := homes.pop()) >= 0:
            inside[home].append(query)
    return [(int(w[0]), asked) for w, asked in zip(windows, inside, strict=True) if asked]


def _spread(parts: Sequence[T], questions: int, asked: Callable[[T], int]) -> Sequence[T]:
    """The fewest evenly spaced parts whose questions suffice; all if none do. asked: of a part."""
    for count in range(1, len(parts) + 1):
        chosen = [parts[i * len(parts) // count] for i in range(count)]
        if sum(map(asked, chosen)) >= questions:
            return chosen
    return parts
