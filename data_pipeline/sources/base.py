"""What a source of data is: one class, which draws banks and registers itself.

A module of this folder with a class under `@register` is a source: the config has its settings as
`data.NAME` and its banks as `data.banks.NAME`, stages draw from it, the tokenizer is trained on its
texts, and `msa eval` asks its held-out questions. docs/extending.md has an example.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from data_pipeline.errors import DataError, check_least
from data_pipeline.schema import Document, Query
from data_pipeline.tokenizer import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class DrawnBank:
    """Documents ascending by number, and questions that they answer.

    texts: plain texts that are read beside them, each alone and without the documents.
    """

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, documents: Iterable[Document], queries: Iterable[Query]) -> DrawnBank:
        """Documents in any order."""
        in_order = sorted(documents, key=lambda document: document.number)
        return cls(tuple(in_order), tuple(queries))


@dataclass(frozen=True)
class BankConfig:
    """Banks of one source: how often it is drawn, documents of a bank, contexts asked of it."""

    weight: float = 1.0
    documents: int = 128
    contexts: int = 64

    def __post_init__(self) -> None:
        for name, least in (("weight", 0), ("documents", 1), ("contexts", 1)):
            value = getattr(self, name)
            if value < least:
                raise DataError(f"{name} of a bank (data.banks.*) is {value}: give {least} or more")


@dataclass(frozen=True)
class NumberConfig:
    """Document numbers of a bank: drawn at random, or unseen numbers could not be written.

    limit: numbers are below it. short_share: the share drawn with every WIDTH equally likely, so
    that short numbers are seen too; the rest is uniform over [0, limit).
    """

    limit: int = 100_000
    short_share: float = 0.4

    def __post_init__(self) -> None:
        check_least(1, self, "data.numbers.", "limit")
        if not 0 <= self.short_share <= 1:
            raise DataError(f"data.numbers.short_share is {self.short_share}: give 0 to 1")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count] different document numbers in random order.

        Raises DataError when there are not that many.
        """
        if count > self.limit:
            raise DataError(
                f"a bank of {count} documents needs as many numbers, but data.numbers.limit is "
                f"{self.limit}: raise it"
            )
        if 2 * count > self.limit:
            return rng.permutation(self.limit)[:count]
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < count:
            drawn = np.concatenate([drawn, self._candidates(rng, 2 * count)])
            _, first = np.unique(drawn, return_index=True)
            drawn = drawn[np.sort(first)]
        return drawn[:count]

    def _candidates(self, rng: np.random.Generator, count: int) -> np.ndarray:
        width = rng.integers(1, len(str(self.limit - 1)) + 1, count)
        short = rng.random(count) < self.short_share
        bound = np.where(short, np.minimum(10**width, self.limit), self.limit)
        return rng.integers(0, bound)


@dataclass(frozen=True)
class SourceInputs:
    """What a source is made from, beside its settings.

    name: its own, as the config has it. prepared: folder for what it keeps on disk.
    held_out: it must draw what training does not see. seed: data.seed.
    """

    name: str
    tokenizer: Tokenizer
    numbers: NumberConfig
    prepared: Path
    held_out: bool = False
    seed: int = 0


@dataclass(frozen=True)
class HeldOutBank:
    """Questions that training has not seen, and the bank they are asked of.

    measure: answers: how often the router finds and the model answers. retrieval: what the router
        finds, beside one that is led astray. growth: answers in parts of the bank that hold
        evaluation.memory_tokens tokens, for each of `tasks`: beginnings of questions' ids (`single`
        of `single/...`).
    seen: training asks these questions too, since nothing is held out.
    picture: name of a PNG file to draw (None: none); caption: of a picture of growth.
    """

    bank: DrawnBank
    measure: Literal["answers", "retrieval", "growth"] = "answers"
    tasks: tuple[str, ...] = ()
    picture: str | None = None
    caption: str = ""
    seen: bool = False


def check_tasks(tasks: Mapping[str, float], known: Sequence[str], setting: str) -> None:
    """Refuses shares of tasks that are unknown or below 0."""
    for task, share in tasks.items():
        if task not in known:
            raise DataError(f"{setting} names {task!r}: give {', '.join(known)}")
        if not share >= 0:
            raise DataError(f"{setting}.{task} is {share}: give 0 or more")


def place_of(name: str) -> float:
    """A place in [0, 1) by a name alone, the same on every machine: it tells what is held out."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


class EvaluationSettings(Protocol):
    """What a source may ask of the config's section `evaluation`."""

    seed: int
    memory_tokens: tuple[int, ...]
    niah_tasks: tuple[str, ...]
    pydocs_questions: int


class Source(ABC):
    """A source draws banks: equal generators and places give equal banks.

    name: key of its settings and banks in the config, and of its section in a report.
    title: in tables and pictures. settings: dataclass of data.NAME; every field has a default.
    banks: default of data.banks.NAME; weight 0 leaves runs that do not name the source as they are.

    Below, `config` is always an instance of `settings`. A source repeats names and defaults of what
    it overrides, and of its types only those that are narrower.
    """

    name: str
    title: ClassVar[str]
    settings: ClassVar[type]
    banks: ClassVar[BankConfig] = BankConfig(weight=0.0)

    @classmethod
    @abstractmethod
    def make(cls, config: Any, inputs: SourceInputs) -> Source:
        """The source under settings as `for_stage` returns them. It must be picklable."""

    @abstractmethod
    def bank(
        self,
        rng: np.random.Generator,
        documents: int,
        questions: int | None = None,
        document_tokens: int | None = None,
        place: int = 0,
    ) -> DrawnBank:
        """A bank of `documents` documents and at most `questions` questions (None: all it has).

        document_tokens: target length of a document, for sources that can choose it.
        place: how many banks were drawn from this source before, for sources whose questions run
        out: each is asked once before any is asked again.
        """

    @classmethod
    def for_stage(
        cls, config: Any, document_tokens: int | None, tasks: Mapping[str, float] | None
    ) -> Any:
        """The settings as a stage has them, by its stages[].data.document_tokens and tasks.

        Stages with equal settings share one source. Raises DataError for tasks that are impossible.
        """
        return config

    @classmethod
    def check_stage(
        cls, config: Any, bank: BankConfig, stage: int, document_tokens: int | None
    ) -> None:
        """Raises DataError where a stage cannot draw from the source."""
        return None

    @classmethod
    def preparation(cls, config: Any, inputs: SourceInputs) -> Callable[[], Any] | None:
        """What has to be done before samples are drawn, such as tables on disk (None: nothing).

        A picklable call, which may run in another process and, again, in `make`.
        """
        return None

    @classmethod
    def tokenizer_texts(
        cls, config: Any, amounts: TokenizerConfig, rng: np.random.Generator
    ) -> Iterator[str]:
        """Texts to train a tokenizer on, without held-out ones."""
        return iter(())

    @classmethod
    def held_out(cls, config: Any) -> Any:
        """The settings under which to draw what training does not see (None: there is nothing)."""
        return config

    @classmethod
    def held_out_bank(
        cls, config: Any, inputs: SourceInputs, evaluation: EvaluationSettings
    ) -> HeldOutBank | None:
        """What `msa eval` asks (None: nothing)."""
        return None


REGISTERED: dict[str, type[Source]] = {}  # as modules were imported; see registry.SOURCES
_Source = TypeVar("_Source", bound=type[Source])


def register(source: _Source) -> _Source:
    """Class decorator: makes a source known under its name."""
    if REGISTERED.setdefault(source.name, source) is not source:
        raise DataError(f"two sources are named {source.name!r}: rename one")
    return source
