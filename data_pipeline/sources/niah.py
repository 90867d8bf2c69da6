"""Needle banks: RULER's tasks with every document a needle, at any length, from a seed.

RULER (arXiv 2404.06654) asks for a needle in one long text. Here a bank is the text, and each
needle stands in a document of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import ceil, perm
from typing import Literal, get_args

import numpy as np

from data_pipeline.errors import DataError, check_least
from data_pipeline.schema import Document, Query
from data_pipeline.sources.base import (
    BankConfig,
    DrawnBank,
    HeldOutBank,
    NumberConfig,
    Source,
    check_tasks,
    register,
)
from data_pipeline.sources.niah_words import Prose, WordLists, sentences, word_lists
from data_pipeline.splitting import document_length
from data_pipeline.tokenizer import Tokenizer

NeedleTask = Literal["single", "multi_key", "multi_value", "multi_query"]
TASKS: tuple[NeedleTask, ...] = get_args(NeedleTask)
GROUP_SIZE = {"single": 1, "multi_key": 4, "multi_value": 4, "multi_query": 4}  # RULER's fours
_SHORTEST_PROSE = 8  # tokens of a document without a needle, at the least
_PROBE = 256  # documents that tell how long they are on average
_MARGIN = 1.01  # so much longer than the longest memory is an evaluation's bank


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

    tasks: Mapping[NeedleTask, float] = field(
        default_factory=lambda: {"single": 0.5, "multi_value": 0.5}
    )
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
        check_tasks(self.tasks, TASKS, "data.niah.tasks")
        if not sum(self.tasks.values()) > 0:
            raise DataError(f"data.niah.tasks is {dict(self.tasks)}: give one a positive share")
        if not 0 < self.needle_share <= 1:
            raise DataError(f"data.niah.needle_share is {self.needle_share}: give 0 < share <= 1")
        check_least(1, self, "data.niah.", "key_words", "nouns", "value_digits", "document_tokens")
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

    task: NeedleTask
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
        tasks: list[NeedleTask] = []
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

    def _keys(self, rng: np.random.Generator, tasks: list[NeedleTask]) -> list[tuple[str, ...]]:
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

    def _values(self, rng: np.random.Generator, task: NeedleTask) -> tuple[str, ...]:
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


@register
class NiahSource(Source):
    """Draws needle banks whose documents have a set length in the tokenizer's tokens."""

    name = "niah"
    title = "Needles"
    settings = NiahConfig
    banks = BankConfig()

    def __init__(
        self,
        config: NiahConfig,
        tokenizer: Tokenizer,
        numbers: NumberConfig | None = None,
    ):
        self.config = config
        self.needles = Needles(config)
        self.numbers = numbers or NumberConfig()
        self._prose = _prose(tokenizer)
        self._cost = _NeedleCost(self.needles, self._prose, tokenizer)

    @classmethod
    def make(cls, config: NiahConfig, inputs) -> NiahSource:
        return cls(config, inputs.tokenizer, inputs.numbers)

    def bank(self, rng, documents, questions=None, document_tokens=None, place=0) -> DrawnBank:
        """A bank of needles; its questions in random order (None: one for every needle or group).

        document_tokens: target length with the wrapper (None: the config's). A needle that is
        longer than the target stands without filler: 0 gives bare needles.
        """
        target = self.config.document_tokens if document_tokens is None else document_tokens
        if target > self.config.document_tokens:
            raise DataError(
                f"document_tokens {target} is more than data.niah.document_tokens "
                f"({self.config.document_tokens}): raise that"
            )
        numbers = self.numbers.draw(rng, documents).tolist()
        count = max(1, round(documents * self.config.needle_share)) if documents else 0
        built, queries = [], []
        for group in self.needles.draw(rng, count):
            own = [numbers.pop() for _ in group.values]
            for number, key, value in zip(own, _key_per_value(group), group.values, strict=True):
                built.append(self._document(rng, number, key, value, target))
            if group.asked:
                queries += self._queries(group, own)
        built += [self._hay(rng, number, target) for number in numbers]
        order = rng.permutation(len(queries))[:questions].tolist()
        return DrawnBank.of(built, (queries[i] for i in order))

    @classmethod
    def for_stage(cls, config: NiahConfig, document_tokens, tasks) -> NiahConfig:
        return config if tasks is None else replace(config, tasks=dict(tasks))

    @classmethod
    def check_stage(cls, config: NiahConfig, bank, stage, document_tokens) -> None:
        if (document_tokens or 0) > config.document_tokens:
            raise DataError(
                f"stages[{stage}].data.document_tokens is {document_tokens}, more than "
                f"data.niah.document_tokens ({config.document_tokens}): raise that"
            )
        if bank.documents * config.needle_share > config.key_count:
            raise DataError(
                f"data.banks.niah.documents is {bank.documents}, but data.niah "
                f"makes only {config.key_count} keys: raise its key_words, adjectives or nouns"
            )

    @classmethod
    def tokenizer_texts(cls, config: NiahConfig, amounts, rng) -> Iterator[str]:
        words = list(Needles(config).words.all)
        for _ in range(amounts.word_repeats):
            yield "".join(f" {word}" for word in rng.permutation(words))
        yield from needle_texts(config, rng, amounts.needle_texts)

    @classmethod
    def held_out_bank(cls, config: NiahConfig, inputs, evaluation) -> HeldOutBank:
        """Needles of all tasks in equal shares, no other documents, enough for the longest memory.

        A fresh seed is held out: no bank of training has these needles together.
        """
        tasks = dict.fromkeys(evaluation.niah_tasks, 1.0)
        source = cls.make(replace(config, tasks=tasks, needle_share=1.0), inputs)
        probe = source.bank(np.random.default_rng(evaluation.seed), _PROBE)
        tokens = (document_length(inputs.tokenizer, d.text, d.number) for d in probe.documents)
        mean = np.mean(list(tokens))
        documents = ceil(max(evaluation.memory_tokens) / mean * _MARGIN)
        return HeldOutBank(
            source.bank(np.random.default_rng(evaluation.seed), documents),
            "growth",
            evaluation.niah_tasks,
            "memory.png",
            "Every document of the memory is a needle",
        )

    def _document(
        self, rng: np.random.Generator, number: int, key: str, value: str, target: int
    ) -> Document:
        cost = self._cost(number, key, value)
        if cost > self.config.document_tokens:
            raise DataError(
                f"a needle for {key!r} takes {cost} tokens with its wrapper, more than "
                f"data.niah.document_tokens ({self.config.document_tokens}): raise that, or train "
                "a tokenizer that knows the key words"
            )
        prose = self._prose.draw(rng, target - cost)
        whole = sum(sentence[-1].endswith(".") for sentence in prose)
        place = int(rng.integers(whole + 1))
        words = [" ".join(sentence) for sentence in prose]
        words.insert(place, self.needles.sentence(key, value))
        return Document(number, " ".join(words))

    def _hay(self, rng: np.random.Generator, number: int, target: int) -> Document:
        budget = max(target - self._cost.wrapper(number), _SHORTEST_PROSE)
        prose = self._prose.draw(rng, budget)
        return Document(number, " ".join(" ".join(sentence) for sentence in prose))

    def _queries(self, group: NeedleGroup, numbers: list[int]) -> Iterator[Query]:
        """One query for the group, or one for each key that is asked for alone."""
        if group.task in ("single", "multi_key"):
            for number, key, value in zip(numbers, group.keys, group.values, strict=True):
                question = self.needles.question((key,), several=False)
                yield Query(question, (value,), (number,), id=f"{group.task}/{key}")
            return
        values = group.values
        if group.task == "multi_value":
            order = self.config.value_order
            pairs = sorted(zip(numbers, values, strict=True))
            values = tuple(v for _, v in pairs) if order == "number" else tuple(sorted(values))
        yield Query(
            self.needles.question(group.keys, several=True),
            (", ".join(values),),
            tuple(sorted(numbers)),
            values,
            id=f"{group.task}/{group.keys[0]}",
        )


@lru_cache(maxsize=1)
def _prose(tokenizer: Tokenizer) -> Prose:
    """The prose that the sources of all stages share: measuring its words takes a while."""
    return Prose(tokenizer)


class _NeedleCost:
    """Tokens of a document that holds nothing but a needle, wrapper included, by addition.

    What a last word costs more when the closing bracket touches it is charged at its worst, for
    needle and filler alike.
    """

    def __init__(self, needles: Needles, prose: Prose, tokenizer: Tokenizer):
        self._tokenizer, self._known = tokenizer, {}
        length = self._length
        words = needles.words
        self._fixed = length(f" {needles.opening}") + length(" is:")
        self._word = {word: length(f" {word}") for word in words.adjectives + words.nouns}
        self._value = {value: length(f" {value}.") for value in words.values}
        self._number_value = length(" 1.") - 1 if needles.config.value_form == "number" else 0
        joint = [length(f" {value}.[") - self._value[value] - length("[") for value in words.values]
        worst = max(0, *joint, *prose.joint.values())
        # <|im_start|> "[7]." ... "[7]" <|im_end|>, without the numbers
        self._frame = 2 + (length("[7].") - length("[7]")) + worst

    def _length(self, text: str) -> int:
        if (known := self._known.get(text)) is None:
            known = self._known[text] = len(self._tokenizer.encode_text(text))
        return known

    def wrapper(self, number: int) -> int:
        return self._frame + 2 * self._length(f"[{number}]")

    def __call__(self, number: int, key: str, value: str) -> int:
        words = sum(self._word[word] for word in key.split())
        answer = self._value.get(value) or self._number_value + self._length(value)
        return self.wrapper(number) + self._fixed + words + answer


def needle_texts(config: NiahConfig, rng: np.random.Generator, count: int) -> Iterator[str]:
    """Texts to train a tokenizer on: documents with needles, questions and answers.

    Every word of the lists comes up about equally often, so that frequent training gives each one
    a token of its own.
    """
    needles = Needles(config)
    filler = sentences()
    while count > 0:
        groups = needles.draw(rng, min(count, 128, config.key_count))
        for group in groups:
            number = int(rng.integers(10 ** int(rng.integers(1, 7))))
            for key, value in zip(_key_per_value(group), group.values, strict=True):
                prose = filler[rng.integers(len(filler))]
                yield f"[{number}]. {prose} {needles.sentence(key, value)}[{number}]"
            yield f"{needles.question(group.keys, len(group.values) > 1)}\n"
        count -= sum(len(group.values) for group in groups)


def _key_per_value(group: NeedleGroup) -> tuple[str, ...]:
    return group.keys * (len(group.values) // len(group.keys))
