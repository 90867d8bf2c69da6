"""The one interface behind which every source of documents and questions stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Document, Query


@dataclass(frozen=True)
class DrawnBank:
    """Documents ascending by number, and questions that they answer.

    texts: plain texts that are read beside them, each alone and without the documents.
    """

    documents: tuple[Document, ...]
    queries: tuple[Query, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class BankConfig:
    """Banks of one source: how often it is drawn, documents of a bank, contexts asked of it."""

    weight: float = 1.0
    documents: int = 128
    contexts: int = 64

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise DataError(f"weight of a bank (data.banks.*) is {self.weight}: give 0 or more")
        for name in ("documents", "contexts"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"{name} of a bank (data.banks.*) is {getattr(self, name)}: give 1 or more"
                )


class Source(Protocol):
    """A source draws banks: equal generators and places give equal banks."""

    name: str

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
        ...


@dataclass(frozen=True)
class NumberConfig:
    """Document numbers of a bank: drawn at random, or unseen numbers could not be written.

    limit: numbers are below it. short_share: the share drawn with every WIDTH equally likely, so
    that short numbers are seen too; the rest is uniform over [0, limit).
    """

    limit: int = 100_000
    short_share: float = 0.4

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise DataError(f"data.numbers.limit is {self.limit}: give 1 or more")
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
