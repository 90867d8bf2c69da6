"""BM25 over a set of texts or any part of it, by bm25s: baseline and miner of hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class BM25:
    """BM25 (Lucene's form, k1 1.5, b 0.75) with English stemming and stop words, by bm25s.

    The texts are tokenised once; `rank` indexes any part of them, because word rarity and mean
    length are those of the bank asked about. The last index is kept: banks that share their
    documents are indexed once.
    """

    def __init__(self, texts: Sequence[str]):
        self._stemmer = _stemmer()
        self._corpus = _tokenize(texts, self._stemmer)
        self._indexed: tuple[bytes, object] | None = None

    def rank(self, part: np.ndarray, questions: Sequence[str], k: int) -> np.ndarray:
        """[questions, min(k, len(part))] places in texts, best first; equal scores: lower place.

        part [n]: places of the bank's documents in texts, in any order.
        """
        part = np.sort(part)
        k = min(k, len(part))
        best = np.zeros((len(questions), k), dtype=np.int64)
        for row, scores in enumerate(self.scores(part, questions)):
            best[row] = best_first(scores, k)
        return part[best]

    def scores(self, part: np.ndarray, questions: Sequence[str]) -> Iterator[np.ndarray]:
        """[n] scores of the documents at `part` [n], ascending, question by question."""
        nothing = np.zeros(len(part))  # what a question of stop words alone matches
        if not any(len(self._corpus.ids[place]) for place in part):  # bm25s takes no empty corpus
            yield from (nothing for _ in questions)
            return
        index = self._index(part)
        asked = _tokenize(questions, self._stemmer)
        names = {number: word for word, number in asked.vocab.items()}
        for ids in asked.ids:
            yield index.get_scores([names[w] for w in ids]) if len(ids) else nothing

    def _index(self, part: np.ndarray):
        import bm25s
        from bm25s.tokenization import Tokenized

        key = part.tobytes()
        if self._indexed is None or self._indexed[0] != key:
            index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            ids = [self._corpus.ids[place] for place in part]
            index.index(Tokenized(ids=ids, vocab=self._corpus.vocab), show_progress=False)
            self._indexed = key, index
        return self._indexed[1]


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """[k] places of the k largest of scores [n]; equal scores: lower place first."""
    if not k:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _tokenize(texts: Sequence[str], stemmer):
    import bm25s

    return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)


def _stemmer():
    import Stemmer

    return Stemmer.Stemmer("english")
