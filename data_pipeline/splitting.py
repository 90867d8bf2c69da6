"""Long documents are split by one rule, the same for training, evaluation and serving.

A text is cut at the ends of sentences into parts of as many whole sentences as fit; a sentence that
is too long alone is cut after the last word that fits, or, without spaces, the last character.
Every part is shown under the document's title.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from functools import partial

from data_pipeline.protocol import document_pieces
from data_pipeline.tokenizer import Tokenizer

# After the mark of a sentence's end, with the quote that it closes, or at a line's end. A script
# without spaces has none after its marks; Thai and Lao have no marks, but a space.
_MARKS, _CLOSING = "。！？｡।॥။។៕", "”’」』）》"
_SENTENCE = re.compile(
    rf"(?<=[.!?…؟۔])(?=\s)|(?<=[{_MARKS}])(?![{_MARKS}{_CLOSING}])|(?<=[{_MARKS}][{_CLOSING}])"
    r"|(?<=[\u0e00-\u0eff])(?= +[\u0e00-\u0eff])|(?<=\n)"
)
DOCUMENT_TOKENS = 512  # of a document, wherever nothing else is asked for
_WORD_END = re.compile(r"(?<=\s)(?=\S)")
_TOKEN_CHARACTERS = 8  # hardly any text has more of them per token
_UNEVEN = 16  # tokens by which a text may be shorter than its beginning, or its wrapper longer


def sentences(text: str) -> list[str]:
    """The text in sentences, whose concatenation is the text."""
    return [part for part in _SENTENCE.split(text) if part]


def split_text(text: str, limit: int, length: Callable[[str], int]) -> list[str]:
    """Parts of a text, each of at most `limit` by `length` (tokens of a string), stripped.

    A text that fits is one part. A single character may be longer than the limit: it stays whole.
    `length` is asked for a few times as many characters in all as the text has.
    """
    fits = _Fits(limit, length)
    if fits(text):
        return [text]
    ends, parts = _ends(text, fits), []
    first, count = 0, 1

    def between(start: int, pieces: int) -> str:
        return text[ends[start] : ends[start + pieces]]

    def part_fits(start: int, pieces: int) -> bool:
        return fits(between(start, pieces))

    while first + 1 < len(ends):
        count = _most(partial(part_fits, first), len(ends) - 1 - first, count)
        parts.append(between(first, count))
        first += count
    return [stripped for part in parts if (stripped := part.strip())]


def document_length(tokenizer: Tokenizer, text: str, number: int = 999_999) -> int:
    """Tokens of a document with its wrapper and a wide number."""
    _, body, _ = document_pieces(number, text)
    return 2 + len(tokenizer.encode_text(body.text))


class _Fits:
    """Whether texts have at most `limit` tokens. Of a long one, only a beginning is cut into tokens
    that is too long already."""

    def __init__(self, limit: int, length: Callable[[str], int]):
        self._limit, self._length = limit, length
        self._spare = limit - 2 * length("") - _UNEVEN  # bytes that fit: a token has one at least

    def __call__(self, text: str) -> bool:
        if len(text) * 4 <= self._spare:
            return True
        size = _TOKEN_CHARACTERS * self._limit
        while size < len(text):
            if self._length(text[:size]) > self._limit + _UNEVEN:
                return False
            size *= 2
        return self._length(text) <= self._limit


def _ends(text: str, fits: Callable[[str], bool]) -> array[int]:
    """Where the text may be cut, from 0 on: at the ends of sentences, in those too long at the ends
    of words, in those too long after every character."""
    ends, at = array("q", [0]), 0
    for sentence in sentences(text):
        whole = fits(sentence)
        for word in [sentence] if whole else _WORD_END.split(sentence):
            end = at + len(word)
            ends.extend([end] if whole or fits(word) else range(at + 1, end + 1))
            at = end
    return ends


def _most(fits: Callable[[int], bool], most: int, guess: int) -> int:
    """The largest n, 1 to most, for which fits(n); 1 where there is none. From the guess on it
    looks farther and farther away, and then halves what lies between."""
    low, high, at, step = 1, most + 1, guess, max(1, guess // 16)
    below = above = False
    while low + 1 < high:
        at = (low + high) // 2 if below and above else min(max(at, low + 1), high - 1)
        if fits(at):
            low, at, below = at, at + step, True
        else:
            high, at, above = at, at - step, True
        step *= 2
    return low
