"""Word search beside the router: the word counts of banks, BM25 of a view's documents, one ranking.

BM25 finds names and numbers that a router overlooks, the router what is said in other words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from data_pipeline.bm25 import BM25, WordCounts, best_first
from data_pipeline.progress import ProgressBar
from data_pipeline.sources.dataset_tables import shown_text
from msa_train.errors import MissingDependencyError
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.view import MemoryView

_SAMPLED = 128


def fused_scores(votes: Tensor, sampled: Tensor, words: Tensor, all_words: Tensor) -> Tensor:
    """[..., c] float64 sum of z-scores of c documents, by the router's votes and by BM25.

    votes, words [..., c]: of the documents. Mean and deviation are those of a question's scores of
    all documents that can be found: of all_words [..., p], and, because a certified search scores
    only those that may be among the best, of sampled [..., s], the votes of `sample`.
    """
    return _z_scores(votes, sampled) + _z_scores(words, all_words)


def sample(places: Tensor) -> Tensor:
    """[<=128] of places [p], ascending: evenly spaced, all where there are no more."""
    count = min(len(places), _SAMPLED)
    return places[torch.arange(count) * len(places) // max(count, 1)]


def _z_scores(scores: Tensor, those: Tensor) -> Tensor:
    """A method whose scores are all equal says nothing."""
    those = those.double()
    mean = those.mean(-1, keepdim=True)
    deviation = (those - mean).square().mean(-1, keepdim=True).sqrt()
    return (scores.double() - mean) / deviation.clamp(min=1e-9)


class WordIndexes:
    """Word counts of snapshots. Those of a segment are made once and kept while a view needs them,
    so a change of a bank costs what it adds.

    Raises MissingDependencyError where the packages that make words of texts are not installed.
    """

    def __init__(self) -> None:
        if find_spec("bm25s") is None or find_spec("Stemmer") is None:
            raise MissingDependencyError(
                "--hybrid bm25 needs the packages bm25s and PyStemmer: pip install "
                "'msa-train[hybrid]', or leave --hybrid out"
            )
        self._counts: WeakValueDictionary[str, WordCounts] = WeakValueDictionary()

    def of(self, bank: BankSnapshot) -> BM25:
        """BM25 of all stored documents of a snapshot, by place, removed ones among them: who asks
        says which (WordScores does). Raises BankError for texts that were changed on disk."""
        held = {each.identity: self._counts.get(each.identity) for each in bank.segments}
        new = [each for each in bank.segments if held[each.identity] is None]
        with ProgressBar("words", "documents", sum(len(each.documents) for each in new)) as bar:
            for segment in new:
                held[segment.identity] = WordCounts.of(_texts(segment, bar))
        self._counts.update(held)
        return BM25(*held.values())


def _texts(segment: Segment, bar: ProgressBar) -> Iterator[str]:
    """Under their titles, as far as they do not begin with them."""
    segment.check_documents()
    columns = (segment.documents.column(name).iterchunks() for name in ("title", "text"))
    for titles, texts in zip(*columns, strict=True):
        for title, text in zip(titles.to_pylist(), texts.to_pylist(), strict=True):
            yield text if text.startswith(title) else shown_text(title, text)
        bar.advance(len(texts))


@dataclass(frozen=True, eq=False)
class WordScores:
    """BM25 of a question over the documents that a view can find: places [p] ascending, scores [p]
    float64.

    How rare a word is, and how long a document usually is, is counted in these documents alone.
    """

    places: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, view: MemoryView, question: str) -> WordScores:
        assert view.words is not None
        places = view.findable.nonzero().squeeze(1).numpy()
        return cls(places, next(view.words.scores(places, [question])))

    @property
    def sample(self) -> Tensor:
        """[<=128] places whose votes stand for those of all."""
        return sample(torch.from_numpy(self.places))

    def best(self, k: int) -> Tensor:
        """[<=k] places, best first, of documents that have a word of the question."""
        found = best_first(self.scores, min(k, len(self.places)))
        return torch.from_numpy(self.places[found[self.scores[found] > 0]])

    def at(self, places: Tensor) -> Tensor:
        """[c] scores of documents that the view can find."""
        return torch.from_numpy(self.scores[np.searchsorted(self.places, places.numpy())])
