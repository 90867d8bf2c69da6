"""Nested banks: every length of memory answers the same questions.

One set of documents is encoded once, as long as the longest memory asked for, and laid out as a
ring in which the documents of one question are neighbours. The bank of L tokens of a group is the
run of consecutive documents from the group's first document that holds L tokens, so that a group's
longer banks contain its shorter ones. (Inside a bank documents stand by number, as everywhere.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Query


@dataclass(frozen=True)
class QuestionGroup:
    """Questions that share their banks.

    banks: memory tokens -> places [n] of the bank's documents in the set, ascending.
    """

    queries: tuple[Query, ...]
    banks: dict[int, np.ndarray]


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
    for first, asked in _spread(usable, questions):
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


def _spread(usable: list[tuple[int, list[Query]]], questions: int) -> list[tuple[int, list[Query]]]:
    """The fewest evenly spaced windows whose questions suffice; all if none do."""
    for count in range(1, len(usable) + 1):
        chosen = [usable[i * len(usable) // count] for i in range(count)]
        if sum(len(asked) for _, asked in chosen) >= questions:
            return chosen
    return usable
