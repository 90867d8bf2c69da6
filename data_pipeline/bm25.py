"""BM25 over a set of texts or any part of it: baseline, miner of hard negatives, half of a hybrid.

bm25s makes words of texts. Its index belongs to one set of documents and is made anew for every
other; here only is kept what does not depend on a set, which word stands in which text how often,
so that texts come, go and are left out without a new index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

K1, B = 1.5, 0.75
_TEXTS = 4096  # whose words are in memory at once


@dataclass(frozen=True, eq=False)
class WordCounts:
    """Which words stand in n texts, and how often; it never changes.

    lengths [n]: words of each text, without stop words. row: of a word's entries, which are
    `bounds[row]` to `bounds[row + 1]` of places (of texts, ascending) and counts.
    """

    lengths: np.ndarray
    row: dict[str, int]
    bounds: np.ndarray
    places: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordCounts:
        """Reads the texts once. Raises ImportError where bm25s or PyStemmer is not installed."""
        stemmer, row, remaining = _stemmer(), {}, iter(texts)
        lengths, parts, first = [np.zeros(0, dtype=np.int32)], [_NO_ENTRIES], 0
        while batch := list(islice(remaining, _TEXTS)):
            found = _tokenize(batch, stemmer)
            known = [row.setdefault(word, len(row)) for word in found.vocab]
            lengths.append(np.array([len(ids) for ids in found.ids], dtype=np.int32))
            parts.append(_entries(found.ids, np.array(known, dtype=np.int64), first))
            first += len(batch)
        rows, places, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")  # within a word, places ascend already
        bounds = np.searchsorted(rows[order], np.arange(len(row) + 1))
        return cls(np.concatenate(lengths), row, bounds, places[order], counts[order])


class BM25:
    """BM25 (Lucene's form, k1 1.5, b 0.75) with English stemming and stop words.

    Its texts are those of `parts`, one after another. Word rarity and mean length are those of the
    texts that are asked about (`part`), as if there were no others.
    """

    def __init__(self, *parts: WordCounts):
        self._parts, self._stemmer = parts, _stemmer()
        sizes = [len(part.lengths) for part in parts]
        self._firsts = np.cumsum([0, *sizes])[:-1].tolist()
        nothing = np.zeros(0, dtype=np.int32)
        self._lengths = np.concatenate([nothing, *(part.lengths for part in parts)])

    @classmethod
    def of(cls, texts: Iterable[str]) -> BM25:
        return cls(WordCounts.of(texts))

    def __len__(self) -> int:
        return len(self._lengths)

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
        """[n] scores of the texts at `part` [n], ascending, question by question."""
        where = np.full(len(self), -1, dtype=np.int64)
        where[part] = np.arange(len(part))
        lengths = self._lengths[part]
        mean = max(float(lengths.mean()) if len(part) else 0.0, 1e-9)  # texts without words
        penalty = K1 * (1 - B + B * lengths / mean)
        asked = _tokenize(questions, self._stemmer)
        names = {number: word for word, number in asked.vocab.items()}
        for ids in asked.ids:
            scores = np.zeros(len(part))
            for word in (names[number] for number in ids):
                there, counts = self._entries(word, where)
                rarity = math.log(1 + (len(part) - len(there) + 0.5) / (len(there) + 0.5))
                scores[there] += rarity * counts / (penalty[there] + counts)
            yield scores

    def _entries(self, word: str, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places within the part that is asked about, ascending, and counts of a word there."""
        places, counts = [where[:0]], [where[:0]]
        for first, part in zip(self._firsts, self._parts, strict=True):
            if (row := part.row.get(word)) is not None:
                entries = slice(part.bounds[row], part.bounds[row + 1])
                places.append(where[first:][part.places[entries]])
                counts.append(part.counts[entries])
        found, counted = np.concatenate(places), np.concatenate(counts)
        inside = found >= 0
        return found[inside], counted[inside]


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """[k] places of the k largest of scores [n]; equal scores: lower place first."""
    if not k:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


_NO_ENTRIES = (np.zeros(0, dtype=np.int32),) * 3


def _entries(ids: Sequence[Sequence[int]], known: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
    """(rows, places, counts) of each word in each text. ids: the words of consecutive texts, from
    place `first` on; known: the row of each word."""
    words = np.concatenate([known[:0], *(known[each] for each in map(_integers, ids))])
    places = np.repeat(np.arange(len(ids)), [len(each) for each in ids]) + first
    pairs, counts = np.unique(places << 32 | words, return_counts=True)
    found = pairs & 0xFFFFFFFF, pairs >> 32, counts
    return tuple(each.astype(np.int32) for each in found)


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _tokenize(texts: Sequence[str], stemmer):
    import bm25s

    return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)


def _stemmer():
    import Stemmer

    return Stemmer.Stemmer("english")
