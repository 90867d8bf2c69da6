"""Near-duplicates: MinHash finds candidates, the true Jaccard similarity decides.

The Jaccard similarity of two texts is the share of their word 5-grams (characters, in scripts
without spaces) that both have; a text of fewer than five words is one shingle. MinHash and its
locality-sensitive hashing are rensa's; candidates are then compared shingle by shingle, so the
threshold is the one that was asked for and only pairs a little above it can be missed, at most one
in a thousand.
"""

from __future__ import annotations

import numpy as np
from rensa import RMinHash, RMinHashLSH

from data_pipeline.cleaning.text import ngrams

SHINGLE = 5
LOWEST = 0.5  # below it nearly every pair would be a candidate
_HASHES = 128
_MISSED = 1e-3  # the share of pairs exactly at the threshold that may be missed
_SEED = 1


def shingles(tokens: list[str]) -> np.ndarray:
    """Hashes of the different shingles of a text, sorted."""
    return np.unique(ngrams(tokens, max(1, min(SHINGLE, len(tokens)))))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two sets of shingles; texts without words resemble nothing."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


class Sketcher:
    """Signatures for one threshold, and the indexes that compare them.

    A band is a run of rows of the signature; two texts are candidates when a band agrees. The
    longest band that still finds all but _MISSED of the pairs at the threshold is taken.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        rows = max(
            r for r in range(1, 17) if r == 1 or (1 - threshold**r) ** (_HASHES // r) <= _MISSED
        )
        self._bands = _HASHES // rows
        self._length = self._bands * rows

    def signature(self, grams: np.ndarray) -> RMinHash:
        data = grams.tobytes()
        tokens = [data[place : place + 8] for place in range(0, len(data), 8)]
        return RMinHash.from_token_sets([tokens], num_perm=self._length, seed=_SEED)[0]

    def index(self) -> RMinHashLSH:
        return RMinHashLSH(self.threshold, self._length, self._bands)

    def candidates(self, signatures: list[RMinHash]) -> list[bool]:
        """For every text, whether any other one is its candidate."""
        index = self.index()
        index.insert_pairs(list(enumerate(signatures)))
        return index.query_duplicate_flags(signatures)


class NearIndex:
    """Texts by number, and the first of them that another text is a near-duplicate of.

    Two texts under different titles are never near-duplicates: they say the same of two things
    (the townships of a county), and the few words that differ are what questions ask for. A text
    without a title fits any. titles: normalised.
    """

    def __init__(self, sketcher: Sketcher):
        self._threshold = sketcher.threshold
        self._index = sketcher.index()
        self._texts: dict[int, tuple[np.ndarray, str]] = {}

    def add(self, number: int, grams: np.ndarray, signature: RMinHash, title: str = "") -> None:
        self._texts[number] = grams, title
        self._index.insert(number, signature)

    def find(
        self, grams: np.ndarray, signature: RMinHash, title: str = ""
    ) -> tuple[int, float] | None:
        """(number, similarity) of the lowest-numbered near-duplicate."""
        for number in sorted(self._index.query(signature)):
            other, other_title = self._texts[number]
            if title and other_title and title != other_title:
                continue
            if (similarity := jaccard(grams, other)) >= self._threshold:
                return number, similarity
        return None
