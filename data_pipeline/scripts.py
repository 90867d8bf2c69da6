"""Words of any script: of one that is written without spaces, each character is a word."""

from __future__ import annotations

import re

# Scripts written without spaces: Han, kana, Thai, Lao, Burmese, Khmer.
SPACELESS = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3040-\u309f\u30a0-\u30ff\u31f0-\u31ff"
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
)
# What separates them: marks of East Asian width, and of Burmese and Khmer.
_MARKS = "\u3000-\u3004\u3008-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WORD = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}{_MARKS}]+|[{_MARKS}]+")
_MARK = re.compile(rf"[{_MARKS}]+")
_SPACELESS = re.compile(f"[{SPACELESS}]")
_ALONE = re.compile(f"[{SPACELESS}{_MARKS}]")
_NO_SPACE = re.compile(rf"(?<=[{SPACELESS}{_MARKS}]) (?=[{SPACELESS}{_MARKS}])")


def split_words(text: str) -> list[str]:
    """The words of a text with their marks; East Asian marks stand alone."""
    return _WORD.findall(text)


def count_words(text: str) -> int:
    """Words of a text, without marks that stand alone in a script without spaces."""
    return sum(not _MARK.fullmatch(word) for word in split_words(text))


def spaced_words(text: str) -> list[str]:
    """Words between spaces, without characters and marks of scripts without spaces."""
    return [word for word in split_words(text) if not _ALONE.match(word)]


def spaceless(text: str) -> int:
    """Characters of scripts without spaces."""
    return len(_SPACELESS.findall(text))


def join_words(words: list[str]) -> str:
    """The words as their scripts are written: with a space between, or without."""
    return _NO_SPACE.sub("", " ".join(words))
