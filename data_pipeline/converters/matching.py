"""Whether a text names an entity or holds an answer: compared word by word, in lower case."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")
_BRACKETS = re.compile(r"\s*\([^)]*\)\s*$")


def words(text: str) -> str:
    """The words of a text with one space between, and at both ends so that whole words match."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def entity(title: str) -> str:
    """The words of a title without what stands in brackets after it: "Up (film)" is "up"."""
    return words(_BRACKETS.sub("", title))
