"""What needle documents are written with: words of keys and values, and filler prose.

The words are wonderwords', as in RULER. The prose is cut to a budget of tokens without tokenising
it again: SentencePiece pieces do not cross a space, and digits stand alone, so the length of a text
is the sum of the lengths of its words, which are counted once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.sources.stdlib import docstrings
from data_pipeline.tokenizer import Tokenizer

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


_SENTENCE = re.compile(r"[A-Z][a-z]+( [a-z]+,?){4,24}\.")


@cache
def sentences() -> tuple[str, ...]:
    """Plain sentences (words and commas alone) of the standard library's docstrings, sorted."""
    found: set[str] = set()
    for item in docstrings():
        for paragraph in item.text.split("\n\n"):
            for sentence in re.split(r"(?<=[.])\s+", " ".join(paragraph.split())):
                if _SENTENCE.fullmatch(sentence) and "magic" not in sentence:
                    found.add(sentence)
    return tuple(sorted(found))


class Prose:
    """Draws prose of a given number of tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._sentences = [sentence.split() for sentence in sentences()]
        words = sorted({word for sentence in self._sentences for word in sentence})
        length = {word: len(tokenizer.encode_text(f" {word}")) for word in words}
        bracket = len(tokenizer.encode_text("["))
        self._cumulative = [
            np.cumsum([length[word] for word in sentence]).tolist() for sentence in self._sentences
        ]
        # What "word[" costs more than "word" and "[" on their own (they may merge, or split).
        self.joint = {
            word: len(tokenizer.encode_text(f" {word}[")) - length[word] - bracket for word in words
        }
        self._mean = sum(c[-1] for c in self._cumulative) / len(self._cumulative)

    def draw(self, rng: np.random.Generator, budget: int) -> list[list[str]]:
        """Random sentences, each a list of words, of at most `budget` tokens in all.

        The last one is cut after the word that still fits; nothing is drawn for a budget of 0.
        """
        drawn: list[list[str]] = []
        while budget > 0:
            for i in rng.integers(0, len(self._sentences), int(budget / self._mean) + 2).tolist():
                cumulative = self._cumulative[i]
                if cumulative[-1] <= budget:
                    drawn.append(self._sentences[i])
                    budget -= cumulative[-1]
                    continue
                fitting = bisect_right(cumulative, budget)
                if fitting:
                    drawn.append(self._sentences[i][:fitting])
                return drawn
        return drawn
