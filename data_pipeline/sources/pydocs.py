"""The standard library's documentation as a source: real text, and questions about it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError, check_least
from data_pipeline.schema import Document, Query
from data_pipeline.sources.base import (
    BankConfig,
    DrawnBank,
    HeldOutBank,
    NumberConfig,
    Source,
    place_of,
    register,
)
from data_pipeline.sources.pydocs_questions import QuestionWriter
from data_pipeline.sources.stdlib import Docstring, docstrings
from data_pipeline.splitting import document_length
from data_pipeline.tokenizer import Tokenizer

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class PydocsConfig:
    """Banks of documented Python objects.

    held_out_share: share of the documents that training never sees, chosen by their names.
    document_tokens: documents longer than this (with wrapper) are cut after the last word that
        fits. questions: about one document, at most.
    near_share: share of a bank's unasked documents that come from the modules asked about.
    """

    held_out_share: float = 0.1
    document_tokens: int = 256
    questions: int = 4
    near_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("held_out_share", "near_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"data.pydocs.{name} is {getattr(self, name)}: give 0 to 1")
        if self.document_tokens < 32:
            raise DataError(f"data.pydocs.document_tokens is {self.document_tokens}: give 32+")
        check_least(1, self, "data.pydocs.", "questions")


@dataclass(frozen=True)
class Entry:
    """A document without its number, and the questions that it answers."""

    name: str
    module: str
    text: str
    tokens: int  # with wrapper and the widest number
    questions: tuple[str, ...]

    def document(self, number: int) -> Document:
        return Document(number, self.text, id=self.name, title=self.name)

    def query(self, which: int, number: int) -> Query:
        identity = f"pydocs/{self.name}/{which}"
        return Query(self.questions[which], (self.name,), (number,), id=identity)


@register
class PydocsSource(Source):
    """Draws banks of the documents of a split; `whole_bank` holds everything, for evaluation."""

    name = "pydocs"
    title = "Python documentation"
    settings = PydocsConfig
    banks = BankConfig(0.2, 48, 24)

    def __init__(
        self,
        config: PydocsConfig,
        tokenizer: Tokenizer,
        numbers: NumberConfig | None = None,
        split: Split = "train",
    ):
        self.config = config
        self.numbers = numbers or NumberConfig()
        self.entries = self._build(tokenizer)
        self._own = [e for e in self.entries if split_of(e.name, config) == split]
        self._askable = [i for i, entry in enumerate(self._own) if entry.questions]
        self._by_module: dict[str, list[int]] = defaultdict(list)
        for i, entry in enumerate(self._own):
            self._by_module[entry.module].append(i)

    @classmethod
    def make(cls, config: PydocsConfig, inputs) -> PydocsSource:
        split: Split = "held_out" if inputs.held_out else "train"
        return cls(config, inputs.tokenizer, inputs.numbers, split)

    def bank(self, rng, documents, questions=None, document_tokens=None, place=0) -> DrawnBank:
        """A bank of the split's documents; one question for each document asked about.

        Of the others, near_share come from the same modules. document_tokens is not used: real
        documents have the length they have.
        """
        if documents > len(self._own):
            raise DataError(
                f"a bank of {documents} documents was asked for, but pydocs has "
                f"{len(self._own)}: lower data.banks.pydocs.documents"
            )
        wanted = min(documents if questions is None else questions, documents, len(self._askable))
        asked = [self._askable[i] for i in rng.choice(len(self._askable), wanted, replace=False)]
        members = asked + self._others(rng, asked, documents - wanted)
        numbers = self.numbers.draw(rng, documents).tolist()
        queries = [
            self._own[i].query(int(rng.integers(len(self._own[i].questions))), number)
            for i, number in zip(asked, numbers, strict=False)
        ]
        chosen = zip(members, numbers, strict=True)
        return DrawnBank.of((self._own[i].document(number) for i, number in chosen), queries)

    def whole_bank(self, rng: np.random.Generator) -> DrawnBank:
        """All documents of both splits, and every question about the held-out ones."""
        numbers = self.numbers.draw(rng, len(self.entries)).tolist()
        numbered = list(zip(self.entries, numbers, strict=True))
        queries = [
            entry.query(which, number)
            for entry, number in numbered
            if split_of(entry.name, self.config) == "held_out"
            for which in range(len(entry.questions))
        ]
        return DrawnBank.of((entry.document(number) for entry, number in numbered), queries)

    @classmethod
    def tokenizer_texts(cls, config: PydocsConfig, amounts, rng) -> Iterator[str]:
        return iter(training_texts(config))

    @classmethod
    def held_out_bank(cls, config: PydocsConfig, inputs, evaluation) -> HeldOutBank:
        """All documents, and evaluation.pydocs_questions (or all there are) about held-out ones."""
        rng = np.random.default_rng((evaluation.seed, 1))
        bank = cls.make(config, inputs).whole_bank(rng)
        chosen = rng.permutation(len(bank.queries))[: evaluation.pydocs_questions]
        queries = tuple(bank.queries[place] for place in chosen)
        return HeldOutBank(DrawnBank(bank.documents, queries), picture="pydocs.png")

    def _build(self, tokenizer: Tokenizer) -> tuple[Entry, ...]:
        items = docstrings()
        widest = self.numbers.limit - 1
        cut = [truncate(tokenizer, _text(i), self.config.document_tokens, widest) for i in items]
        writer = QuestionWriter(items, [text for text, _ in cut])
        return tuple(
            Entry(
                item.name,
                item.module,
                text,
                tokens,
                tuple(writer.questions(i, self.config.questions)),
            )
            for i, (item, (text, tokens)) in enumerate(zip(items, cut, strict=True))
        )

    def _others(self, rng: np.random.Generator, asked: list[int], count: int) -> list[int]:
        """`count` more documents: some from the modules asked about, the rest from anywhere."""
        taken = set(asked)
        modules = sorted({self._own[i].module for i in asked})
        near = [i for module in modules for i in self._by_module[module] if i not in taken]
        wanted = min(len(near), round(count * self.config.near_share))
        chosen = [near[i] for i in rng.choice(len(near), wanted, replace=False)] if wanted else []
        taken.update(chosen)
        rest = [i for i in range(len(self._own)) if i not in taken]
        return chosen + [rest[i] for i in rng.choice(len(rest), count - wanted, replace=False)]


def split_of(name: str, config: PydocsConfig) -> Split:
    """The split of a document, by its name alone."""
    return "held_out" if place_of(name) < config.held_out_share else "train"


def training_texts(config: PydocsConfig) -> list[str]:
    """Texts of the training split, to train a tokenizer on."""
    return [_text(item) for item in docstrings() if split_of(item.name, config) == "train"]


def truncate(tokenizer: Tokenizer, text: str, limit: int, number: int) -> tuple[str, int]:
    """The text cut after the last word with which document `number` has `limit` tokens at most.

    Returns the text and the document's tokens with wrapper.
    """
    length = partial(document_length, tokenizer, number=number)
    if (tokens := length(text)) <= limit:
        return text, tokens
    ends = [i for i, character in enumerate(text) if character.isspace()]
    fitting = bisect_right(ends, limit, key=lambda end: length(text[:end]))
    kept = text[: ends[fitting - 1]].rstrip() if fitting else ""
    return kept, length(kept)


def _text(item: Docstring) -> str:
    """Name and signature on the first line, then the docstring."""
    prefix = {"class": "class ", "module": "module "}.get(item.kind, "")
    return f"{prefix}{item.name}{item.signature}\n{item.text}"
