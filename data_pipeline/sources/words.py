"""Word lists for needle keys and values: wonderwords, as RULER uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_pipeline.errors import DataError

_PLAIN = re.compile(r"[a-z]{3,8}")
_SEED = 7  # of the fixed shuffle: lists of every size are prefixes of one order


@dataclass(frozen=True)
class WordLists:
    """adjectives and nouns make keys; values are other nouns. No word is in two lists."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.adjectives + self.nouns + self.values


@cache
def word_lists(adjectives: int, nouns: int, values: int) -> WordLists:
    """Plain lowercase ASCII words of 3 to 8 letters in a fixed random order, inoffensive.

    Raises DataError when wonderwords has fewer, with the numbers.
    """
    all_adjectives, all_nouns = _wonderwords()
    if adjectives > len(all_adjectives):
        raise DataError(
            f"data.niah.adjectives is {adjectives}, but there are {len(all_adjectives)} of them"
        )
    if nouns + values > len(all_nouns):
        raise DataError(
            f"data.niah.nouns + data.niah.values is {nouns + values}, "
            f"but there are {len(all_nouns)} nouns"
        )
    return WordLists(
        all_adjectives[:adjectives], all_nouns[:nouns], all_nouns[nouns : nouns + values]
    )


@cache
def _wonderwords() -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        from wonderwords import RandomWord, is_profanity
    except ImportError as error:
        raise DataError("needles need the package wonderwords: pip install wonderwords") from error
    lists = RandomWord(enhanced_prefixes=False)

    def plain(category: str) -> list[str]:
        found = lists.filter(include_categories=[category])
        return sorted({w for w in found if _PLAIN.fullmatch(w) and not is_profanity(w)})

    adjectives = plain("adjective")
    nouns = sorted(set(plain("noun")) - set(adjectives))
    order = np.random.default_rng(_SEED)
    order.shuffle(adjectives)
    order.shuffle(nouns)
    return tuple(adjectives), tuple(nouns)
