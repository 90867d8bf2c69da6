"""Long documents are split by one rule, the same for training, evaluation and serving.

A text is cut at the ends of sentences into parts of as many whole sentences as fit; a sentence that
is too long alone is cut after the last word that fits, or, without spaces, the last character.
Every part is shown under the document's title.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data_pipeline.protocol import document_pieces
from data_pipeline.tokenizer import Tokenizer

# After the mark of a sentence's end, with the quote that it closes, or at a line's end. A script
# without spaces has none after its marks; Thai and Lao have no marks, but a space.
_MARKS, _CLOSING = "。！？｡।॥။។៕", "”’」』）》"
_SENTENCE = re.compile(
    rf"(?<=[.!?…؟۔])(?=\s)|(?<=[{_MARKS}])(?![{_MARKS}{_CLOSING}])|(?<=[{_MARKS}][{_CLOSING}])"
    r"|(?<=[\u0e00-\u0eff])(?= +[\u0e00-\u0eff])|(?<=\n)"
)


def sentences(text: str) -> list[str]:
    """The text in sentences, whose concatenation is the text."""
    return [part for part in _SENTENCE.split(text) if part]


def split_text(text: str, limit: int, length: Callable[[str], int]) -> list[str]:
    """Parts of a text, each of at most `limit` by `length` (tokens of a string), stripped.

    A text that fits is one part. A single character may be longer than the limit: it stays whole.
    """
    if length(text) <= limit:
        return [text]
    parts: list[str] = []
    current = ""
    for piece in _pieces(text, limit, length):
        if current and length(current + piece) > limit:
            parts.append(current)
            current = ""
        current += piece
    return [stripped for part in [*parts, current] if (stripped := part.strip())]


def document_length(tokenizer: Tokenizer, text: str, number: int = 999_999) -> int:
    """Tokens of a document with its wrapper and a wide number."""
    _, body, _ = document_pieces(number, text)
    return 2 + len(tokenizer.encode_text(body.text))


def _pieces(text: str, limit: int, length: Callable[[str], int]) -> list[str]:
    """Sentences, those too long cut into words (or characters) that fit."""
    pieces: list[str] = []
    for sentence in sentences(text):
        if length(sentence) <= limit:
            pieces.append(sentence)
            continue
        for word in re.split(r"(?<=\s)(?=\S)", sentence):
            pieces += [word] if length(word) <= limit else list(word)
    return pieces
