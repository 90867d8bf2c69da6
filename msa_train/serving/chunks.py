"""Where the chunks of a document lie in its text."""

from __future__ import annotations

import numpy as np

from data_pipeline.protocol import document_pieces
from data_pipeline.tokenizer import Tokenizer


def chunk_spans(
    tokenizer: Tokenizer, number: int, text: str, chunk_size: int
) -> list[tuple[int, int]]:
    """[start, end) in characters (Unicode code points) of `text`, of each chunk of a document.

    The tokens around the text (number and control tokens) belong to no character: a chunk of them
    alone is empty. A character whose bytes lie in two chunks belongs to both.
    """
    pieces = document_pieces(number, text)
    ids = tokenizer.encode_pieces(pieces).tokens
    texts = (tokenizer.token_bytes(i) for i in ids[1:-1])  # the control tokens are no text
    lengths = np.array([0, *map(len, texts), 0])
    bounds = np.concatenate([[0], lengths.cumsum()])
    prefix, data = len(f"[{number}]. "), text.encode()
    starts_before, complete_before = _characters(data)
    spans = []
    for first in range(0, len(ids), chunk_size):
        last = min(first + chunk_size, len(ids))
        start, end = np.clip(bounds[[first, last]] - prefix, 0, len(data))
        spans.append((int(complete_before[start]), int(starts_before[end])))
    return spans


def _characters(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """[bytes + 1] each: characters that begin, and that are complete, before each byte offset."""
    octets = np.frombuffer(data, dtype=np.uint8)
    begins = (octets & 0xC0) != 0x80
    started = np.concatenate([[0], begins.cumsum()])
    inside = np.concatenate([~begins, [False]])  # the offset falls within a character
    return started, started - inside
