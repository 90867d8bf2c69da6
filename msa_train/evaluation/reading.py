"""How well a model answers from the texts that a search brings it.

The same questions are asked over the passages of several searches, in the engine's own prompt
(SPEC section 4), beside the right passages alone and none at all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.protocol import NOT_FOUND
from data_pipeline.schema import Document
from data_pipeline.splitting import DOCUMENT_TOKENS
from msa_train.evaluation.encoded_bank import EncodedBank
from msa_train.evaluation.jobs import Job, run_jobs, usable_workers
from msa_train.evaluation.metrics import Bootstrap, Columns, exact_match, f1, words
from msa_train.evaluation.retrieval import Texts, methods, ranked
from msa_train.evaluation.settings import ReadingTest
from msa_train.interop.export import ON_CPU, LoadedModel, Placement, load_export
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits, Request
from msa_train.memory.search.view import MemoryView
from msa_train.router.examples import (
    SPARE,
    Pair,
    RouterExamples,
    read_examples,
    wrong_of,
)
from msa_train.router.exports import cached_examples

Shown = tuple[int, ...]  # numbers of the documents whose texts are read


def evaluate_reading(
    export: Path,
    corpora: Sequence[str],
    split: str,
    test: ReadingTest,
    keep: Path | None = None,
    placed: Placement = ON_CPU,
) -> dict[str, Any]:
    """A report: {"reading": {corpus: {row: {"em", "f1", "intervals", ...}}}, ...}.

    Of a row: "em" and "f1" (the best of a question's answers, 95 % "intervals"), "right_shown" (the
    share of questions with their right passages among those read), "said_absent" (how often the
    answer is that the memory does not say: where they are "shown", and where they are "not_shown";
    None without such questions), "answered" (the share that is answered otherwise), and of those
    "em_answered". keep: as in start_router. Raises DataError where no question has an answer.
    """
    began, loaded = time.monotonic(), load_export(export, placed)
    report: dict[str, Any] = {"reading": {}, "corpora": {}}
    prompts = 0
    for source in corpora:
        examples = _drawn(read_examples(source, loaded.tokenizer, split, seed=test.seed), test)
        shown = dict(_shown(export, examples, test, keep, placed))
        asked = _ask(loaded, examples, shown, test)
        prompts += len(asked)
        report["corpora"][source] = {
            "documents": len(examples.documents),
            "questions": len(examples.pairs),
        }
        report["reading"][source] = {
            name: _row(rows, asked, examples.pairs, test.seed) for name, rows in shown.items()
        }
    seconds = time.monotonic() - began
    return report | {
        "split": split,
        "compute": placed.compute,
        "answer_tokens": test.answer_tokens,
        "seed": test.seed,
        "prompts": prompts,
        "seconds": round(seconds, 1),
    }


def _drawn(examples: RouterExamples, test: ReadingTest) -> RouterExamples:
    """So many of the questions that have an answer."""
    pairs = [pair for pair in examples.pairs if any(map(words, pair.answers))]
    if not pairs:
        raise DataError(
            f"no question about {examples.name} has an answer: give a split whose questions have"
        )
    chosen = random.Random(test.seed).sample(pairs, min(test.questions, len(pairs)))
    return replace(examples, pairs=tuple(chosen))


def _shown(
    export: Path, examples: RouterExamples, test: ReadingTest, keep: Path | None, placed: Placement
) -> Iterator[tuple[str, list[Shown]]]:
    """(row, the documents that each question is asked over)."""
    most = max((int(name.rpartition("_")[2]) for name in test.row_names if "_" in name), default=0)
    rankings: dict[str, list[list[int]]] = {}
    if most:
        means = partial(cached_examples, examples=examples, keep=keep)
        found = methods([export], examples, Texts(examples.documents), means, placed, test.seed)
        names = {export.name: "router", f"{export.name} + BM25": "hybrid", "BM25": "bm25"}
        deep = min(most + SPARE, len(examples.documents))
        for name, method in found:
            if name in names:
                rankings[names[name]] = list(ranked(method, len(examples.pairs), deep))
        wrong = zip(rankings["router"], examples.pairs, strict=True)
        rankings["absent"] = [wrong_of(row, pair, examples.documents) for row, pair in wrong]
    for name in test.row_names:
        search, _, count = name.partition("_")
        if name == "oracle":
            yield name, [pair.documents[: 1 if pair.any_of else None] for pair in examples.pairs]
        elif name == "none":
            yield name, [()] * len(examples.pairs)
        else:
            yield name, [tuple(row[: int(count)]) for row in rankings[search]]


def _ask(
    loaded: LoadedModel,
    examples: RouterExamples,
    shown: Mapping[str, Sequence[Shown]],
    test: ReadingTest,
) -> dict[tuple[int, frozenset[int]], np.ndarray]:
    """[3] exact match, F1 and whether the memory does not say, of each question over each set of
    documents: rows that show the same ones ask once, for texts stand in the order of their numbers.
    """
    different = {
        (place, frozenset(numbers)) for rows in shown.values() for place, numbers in enumerate(rows)
    }

    def length(asked: tuple[int, frozenset[int]]) -> tuple[int, int, list[int]]:
        size = sum(len(examples.documents[number].text) for number in asked[1])
        return -size, asked[0], sorted(asked[1])

    # The longest first: what is left when workers run dry is short.
    todo = iter(sorted(different, key=length))
    view = _view(loaded, examples.documents)
    jobs = {}
    while batch := list(islice(todo, test.batch)):
        run = partial(_answer, loaded, view, examples.pairs, batch, test)
        jobs[tuple(batch)] = Job("reading", len(batch), run)
    found = {}
    for batch, columns in run_jobs(jobs, usable_workers(test.workers, loaded.model.device)).items():
        found.update(zip(batch, np.stack(list(columns.values()), axis=1), strict=True))
    return found


def _view(loaded: LoadedModel, documents: Sequence[Document]) -> MemoryView:
    """The memory that is asked: where no layer reads pooled states, its texts alone."""
    model, tokenizer = loaded.model, loaded.tokenizer
    if model.config.reading_layers:
        return EncodedBank.encode(model, tokenizer, documents).view()
    nothing = EncodedBank.encode(model, tokenizer, documents[:1]).nothing()
    return replace(nothing, documents={each.number: each for each in documents})


def _answer(
    loaded: LoadedModel,
    view: MemoryView,
    pairs: Sequence[Pair],
    batch: Sequence[tuple[int, frozenset[int]]],
    test: ReadingTest,
) -> Columns:
    rankings = [sorted(numbers) for _, numbers in batch]
    most = max(1, *map(len, rankings))
    limits = InterleaveLimits(
        answer_tokens=test.answer_tokens,
        documents=most,
        evidence_tokens=2 * DOCUMENT_TOKENS * most,  # all are read: none is longer than one
    )
    engine = MemoryEngine(loaded.model, loaded.tokenizer, view, len(batch))
    asked = [pairs[place] for place, _ in batch]
    answers = engine.answer(
        [
            Request(pair.question, view, "router", limits, ranking=tuple(ranking))
            for pair, ranking in zip(asked, rankings, strict=True)
        ]
    )

    def best(measure: Callable[[str, str], float]) -> np.ndarray:
        return np.array(
            [
                max(measure(answer.answer, right) for right in pair.answers)
                for answer, pair in zip(answers, asked, strict=True)
            ]
        )

    absent = [exact_match(answer.answer, NOT_FOUND) for answer in answers]
    return {"em": best(exact_match), "f1": best(f1), "absent": np.array(absent)}


def _row(
    shown: Sequence[Shown],
    asked: Mapping[tuple[int, frozenset[int]], np.ndarray],
    pairs: Sequence[Pair],
    seed: int,
) -> dict[str, Any]:
    columns = np.stack([asked[place, frozenset(read)] for place, read in enumerate(shown)])
    em, best, absent = columns.T
    there = np.array([_answerable(read, pair) for read, pair in zip(shown, pairs, strict=True)])
    bootstrap = Bootstrap(len(pairs), seed=seed)
    intervals = {"em": bootstrap.interval(em), "f1": bootstrap.interval(best)}
    return {
        "em": _mean(em),
        "f1": _mean(best),
        "intervals": {name: [round(x, 4) for x in ends] for name, ends in intervals.items()},
        "right_shown": _mean(there),
        "said_absent": {"shown": _mean(absent[there]), "not_shown": _mean(absent[~there])},
        "answered": _mean(1 - absent),
        "em_answered": _mean(em[absent == 0]),
    }


def _answerable(read: Shown, pair: Pair) -> bool:
    """Whether all that is needed is among the documents that were read."""
    return (any if pair.any_of else all)(place in read for place in pair.documents)


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
