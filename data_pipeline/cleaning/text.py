"""What counts as the same text, and what counts as a word, everywhere in cleaning."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from data_pipeline.scripts import SPACELESS

_WORD = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplier of the rolling hash


class _Kept(dict):
    """Character -> what normalising leaves of it, filled as characters are met."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        if category == "Cf":  # soft hyphens, zero-width joiners and spaces: invisible in a word
            self[code] = None
        elif category[0] in "PZ" or category in ("Cc", "Sk"):
            self[code] = " "
        else:  # other symbols stay: "C++" is not "C", and $12 is not 12%
            self[code] = chr(code)
        return self[code]


_KEPT = _Kept()


def normalise(text: str) -> str:
    """NFKC, casefold, punctuation and line ends as spaces, whitespace collapsed.

    Punctuation separates rather than vanishes: "well-known" equals "well - known", and 3.5 does
    not become 35.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_KEPT).split())


def words(text: str) -> list[str]:
    """Words of the normalised text; a character of a script without spaces is a word."""
    return _WORD.findall(normalise(text))


def digest(text: str) -> bytes:
    """16 bytes; equal for texts that are equal once normalised."""
    same = normalise(text) or text.strip()  # "!!!" and "???" are not one text
    return blake2b(same.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def ngrams(tokens: list[str], n: int) -> np.ndarray:
    """A 64-bit hash (uint64) of every n consecutive words, in order; none in a shorter text.

    The same in every process. Two different n-grams meet in one hash about once in 2**64.
    """
    count = len(tokens) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.array([_word_hash(token) for token in tokens], np.uint64)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * _ODD + hashes[k : k + count]
    return total


def repeated_words(tokens: list[str], n: int) -> int:
    """How many words stand in an n-gram that occurred earlier in the text."""
    grams = ngrams(tokens, n)
    repeated = np.ones(len(grams), bool)
    repeated[np.unique(grams, return_index=True)[1]] = False  # first occurrences
    places = np.flatnonzero(repeated)
    if not len(places):
        return 0
    return n + sum(min(n, after - before) for before, after in pairwise(places.tolist()))


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
