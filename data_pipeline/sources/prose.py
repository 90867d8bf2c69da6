"""Needle-free filler prose, cut to a budget of tokens without tokenising it again.

SentencePiece pieces do not cross a space, and digits stand alone, so the length of a text is the
sum of the lengths of its words: they are counted once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cache

import numpy as np

from data_pipeline.sources.stdlib import docstrings
from data_pipeline.tokenizer import Tokenizer

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
