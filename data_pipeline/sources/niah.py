"""Needle banks: RULER's tasks with every document a needle, at any length, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Document, Query
from data_pipeline.sources.base import DrawnBank, NumberConfig
from data_pipeline.sources.needles import NeedleGroup, Needles, NiahConfig
from data_pipeline.sources.prose import Prose, sentences
from data_pipeline.tokenizer import Tokenizer

_SHORTEST_PROSE = 8  # tokens of a document without a needle, at the least


class NiahSource:
    """Draws needle banks whose documents have a set length in the tokenizer's tokens."""

    name = "niah"

    def __init__(
        self,
        config: NiahConfig,
        tokenizer: Tokenizer,
        numbers: NumberConfig | None = None,
    ):
        self.config = config
        self.needles = Needles(config)
        self.numbers = numbers or NumberConfig()
        self._prose = Prose(tokenizer)
        self._cost = _NeedleCost(self.needles, self._prose, tokenizer)

    def with_settings(self, config: NiahConfig) -> NiahSource:
        """The same prose and words under other tasks."""
        other = copy(self)
        other.config, other.needles = config, Needles(config)
        return other

    def bank(
        self,
        rng: np.random.Generator,
        documents: int,
        questions: int | None = None,
        document_tokens: int | None = None,
        place: int = 0,
    ) -> DrawnBank:
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
        return DrawnBank(
            tuple(sorted(built, key=lambda document: document.number)),
            tuple(queries[i] for i in order),
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
