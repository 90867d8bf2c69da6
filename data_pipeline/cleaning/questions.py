"""Questions after their passages were cleaned: ids that still exist, equal questions in one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest

from data_pipeline.cleaning.passages import CleanedPassages
from data_pipeline.cleaning.report import Findings
from data_pipeline.cleaning.text import digest
from data_pipeline.dataset import Question, found_first


def remap(question: Question, passages: CleanedPassages, findings: Findings) -> Question | None:
    """A question naming kept passages alone; None when a positive that it needs was removed.

    A removed negative is left out, and so is one that became a positive. Steps keep an id where it
    came first.
    """
    positives = [passages.stands_for(name) for name in question.positives]
    if question.any_of:
        positives = [name for name in positives if name is not None] or [None]
    steps = [[passages.stands_for(name) for name in step] for step in question.steps]
    if None in positives or any(None in step for step in steps):  # a step may name others
        findings.note("positive_removed", id=question.id, question=question.question)
        return None
    found = [passages.stands_for(name) for name in question.negatives]
    needed = set(positives).union(*steps)
    if any(name in needed for name in found):
        findings.note("negative_was_positive", id=question.id, question=question.question)
    return replace(
        question,
        positives=_once(positives),
        any_of=question.any_of and len(_once(positives)) > 1,
        steps=found_first(steps),
        negatives=_once(name for name in found if name is not None and name not in needed),
    )


def merge(questions: Iterable[Question], findings: Findings) -> list[Question]:
    """Questions equal once normalised become one, in the place and with the id of the first.

    Their positives and answers are united in order: with the passages in one corpus, the positives
    of each answer the question (any one of them where each needed no more), and a passage that
    answers it must not be a negative.
    """
    merged: dict[bytes, Question] = {}
    for question in questions:
        key = digest(question.question)
        if (first := merged.get(key)) is None:
            merged[key] = question
            continue
        same = set(first.positives) == set(question.positives)
        findings.note(
            "merged_same_positives" if same else "merged_other_positives",
            id=question.id,
            kept=first.id,
            question=question.question,
        )
        merged[key] = _united(first, question, same)
    return list(merged.values())


def _united(first: Question, second: Question, same_positives: bool) -> Question:
    positives = _once(first.positives + second.positives)
    negatives = _once(first.negatives + second.negatives)
    any_of = len(positives) > 1 and _needs_one(first) and _needs_one(second)
    if any_of:
        steps = ()
    elif first.steps and second.steps:
        steps = found_first(a + b for a, b in zip_longest(first.steps, second.steps, fillvalue=()))
    else:  # the order of the one says nothing about other positives of the other
        steps = (first.steps or second.steps) if same_positives else ()
    needed = set(positives).union(*steps)
    return replace(
        first,
        answers=_once(first.answers + second.answers),
        positives=positives,
        any_of=any_of,
        steps=steps,
        negatives=tuple(name for name in negatives if name not in needed),
    )


def _needs_one(question: Question) -> bool:
    return question.any_of or len(question.positives) == 1


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
