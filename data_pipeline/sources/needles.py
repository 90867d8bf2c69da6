"""Needles of RULER's tasks: keys, values, the sentences that hide them and the questions.

RULER (arXiv 2404.06654) asks for a needle in one long text. Here a bank is the text, and each
needle stands in a document of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import perm
from typing import Literal, get_args

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.sources.words import WordLists, word_lists

Task = Literal["single", "multi_key", "multi_value", "multi_query"]
TASKS: tuple[Task, ...] = get_args(Task)
GROUP_SIZE = {"single": 1, "multi_key": 4, "multi_value": 4, "multi_query": 4}  # RULER's fours


@dataclass(frozen=True)
class NiahConfig:
    """Needle banks.

    tasks: share of the needle documents that belong to each task. single: one key, one document.
        multi_key: four keys that differ in one word, each asked for alone. multi_value: one key in
        four documents with four values, all asked for at once. multi_query: one question for four
        keys.
    needle_share: share of the documents that hold a needle; below 1 the rest is prose without one,
        the easy haystack.
    key_words: words of a key, the last one a noun. adjectives, nouns, values: sizes of the lists.
    value_form: a word, or a number of value_digits digits.
    value_order: of a multi-value answer: by ascending document number, or alphabetical.
    document_tokens: length of a document with its wrapper, in tokens; none is longer.
    """

    tasks: Mapping[Task, float] = field(default_factory=lambda: {"single": 0.5, "multi_value": 0.5})
    needle_share: float = 1.0
    key_words: int = 3
    adjectives: int = 128
    nouns: int = 256
    values: int = 256
    value_form: Literal["word", "number"] = "word"
    value_digits: int = 7
    value_order: Literal["number", "alphabet"] = "number"
    document_tokens: int = 64

    def __post_init__(self) -> None:
        for task, share in self.tasks.items():
            if task not in TASKS:
                raise DataError(f"data.niah.tasks names {task!r}: give {', '.join(TASKS)}")
            if share < 0:
                raise DataError(f"data.niah.tasks.{task} is {share}: give 0 or more")
        if not sum(self.tasks.values()) > 0:
            raise DataError(f"data.niah.tasks is {dict(self.tasks)}: give one a positive share")
        if not 0 < self.needle_share <= 1:
            raise DataError(f"data.niah.needle_share is {self.needle_share}: give 0 < share <= 1")
        for name in ("key_words", "nouns", "value_digits", "document_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"data.niah.{name} is {getattr(self, name)}: give 1 or more")
        if self.values < 4:
            raise DataError(f"data.niah.values is {self.values}: a multi-value key needs 4")
        if self.adjectives < self.key_words - 1:
            raise DataError(
                f"data.niah.adjectives is {self.adjectives}: a key of {self.key_words} words "
                f"needs {self.key_words - 1} different ones"
            )

    @property
    def key_count(self) -> int:
        """Number of different keys: the largest bank that can be made."""
        return perm(self.adjectives, self.key_words - 1) * self.nouns


@dataclass(frozen=True)
class NeedleGroup:
    """Needles that belong together: their keys and values, in the order of the questions."""

    task: Task
    keys: tuple[str, ...]
    values: tuple[str, ...]
    asked: bool = True


@dataclass(frozen=True)
class Needles:
    """Draws groups of needles and phrases them."""

    config: NiahConfig

    @cached_property
    def words(self) -> WordLists:
        return word_lists(self.config.adjectives, self.config.nouns, self.config.values)

    def sentence(self, key: str, value: str) -> str:
        return f"{self.opening} {key} is: {value}."

    @property
    def opening(self) -> str:
        return f"One of the special magic {self.config.value_form}s for"

    def question(self, keys: tuple[str, ...], several: bool) -> str:
        """RULER's question for one value of one key, or for all values of one or more keys."""
        what, form = ("are all", "s") if several else ("is", "")
        return (
            f"What {what} the special magic {self.config.value_form}{form} for {_joined(keys)} "
            "mentioned in the provided text?"
        )

    def draw(self, rng: np.random.Generator, count: int) -> list[NeedleGroup]:
        """Groups of exactly `count` needle documents; no key stands in two groups.

        What the shares leave over becomes single needles, asked for if `single` has a share.
        Raises DataError when there are fewer keys than needles.
        """
        if count > self.config.key_count:
            raise DataError(
                f"{count} needles need as many keys, but {self.config.key_words} words of "
                f"{self.config.adjectives} adjectives and {self.config.nouns} nouns make "
                f"{self.config.key_count}: raise data.niah.key_words, adjectives or nouns"
            )
        shares, total = self.config.tasks, sum(self.config.tasks.values())
        tasks: list[Task] = []
        for task in TASKS[1:]:
            groups = int(count * shares.get(task, 0.0) / total / GROUP_SIZE[task])
            tasks += [task] * groups
        left = count - sum(GROUP_SIZE[task] for task in tasks)
        tasks += ["single"] * left
        keys = self._keys(rng, tasks)
        asked = {"single": shares.get("single", 0.0) > 0}
        return [
            NeedleGroup(task, group, self._values(rng, task), asked.get(task, True))
            for task, group in zip(tasks, keys, strict=True)
        ]

    def _keys(self, rng: np.random.Generator, tasks: list[Task]) -> list[tuple[str, ...]]:
        """Keys of each group: four drawn at random, one, or one with three near it."""
        drawn = {"single": 1, "multi_key": 1, "multi_value": 1, "multi_query": 4}
        total = sum(drawn[task] for task in tasks)
        space = min(self.config.key_count, 1 << 62)
        numbers = iter(rng.choice(space, total, replace=False).tolist())
        groups = [[self._key(next(numbers)) for _ in range(drawn[task])] for task in tasks]
        used = {key for group in groups for key in group}
        for task, group in zip(tasks, groups, strict=True):
            if task == "multi_key":
                group += self._near_keys(rng, group[0], used)
        return [tuple(" ".join(key) for key in group) for group in groups]

    def _key(self, number: int) -> tuple[str, ...]:
        """The number-th key: each number below key_count gives another one."""
        number, noun = divmod(number, self.config.nouns)
        left, chosen = list(self.words.adjectives), []
        for _ in range(self.config.key_words - 1):
            number, place = divmod(number, len(left))
            chosen.append(left.pop(place))
        return (*chosen, self.words.nouns[noun])

    def _near_keys(
        self, rng: np.random.Generator, key: tuple[str, ...], used: set[tuple[str, ...]]
    ) -> list[tuple[str, ...]]:
        """Unused keys that differ from `key` in one word; added to `used`."""
        near: list[tuple[str, ...]] = []
        for _ in range(1000):
            place = int(rng.integers(len(key)))
            words = self.words.nouns if place == len(key) - 1 else self.words.adjectives
            other = words[rng.integers(len(words))]
            candidate = (*key[:place], other, *key[place + 1 :])
            if other not in key and candidate not in used:
                used.add(candidate)
                near.append(candidate)
                if len(near) == GROUP_SIZE["multi_key"] - 1:
                    return near
        raise DataError(
            f"no three unused keys differ from {' '.join(key)!r} in one word: the bank holds "
            f"{len(used)} of {self.config.key_count} keys; raise data.niah.adjectives or nouns"
        )

    def _values(self, rng: np.random.Generator, task: Task) -> tuple[str, ...]:
        """One value per document; those of one key differ."""
        size = GROUP_SIZE[task]
        if self.config.value_form == "word":
            picks = rng.choice(len(self.words.values), size, replace=False).tolist()
            return tuple(self.words.values[pick] for pick in picks)
        low = 10 ** (self.config.value_digits - 1)
        picks = rng.choice(9 * low, size, replace=False).tolist()
        return tuple(str(low + pick) for pick in picks)


def _joined(keys: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(keys) < 3:
        return " and ".join(keys)
    return f"{', '.join(keys[:-1])}, and {keys[-1]}"
