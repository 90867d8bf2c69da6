"""Where chunks lie: against decoding prefixes of the document's tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.protocol import document_pieces
from msa_train.serving.lookup import chunk_spans
from tests.memory.tiny import TEXTS, tiny_tokenizer


def by_decoding(number, text, size):
    """[start, end) by the text that whole prefixes of tokens decode to."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_pieces(document_pieces(number, text)).tokens
    stretch, prefix = ids[1:-1], len(f"[{number}]. ")

    def decoded(count):
        return tokenizer.decode(stretch[: min(max(count - 1, 0), len(stretch))])

    spans = []
    for first in range(0, len(ids), size):
        start, end = (decoded(at) for at in (first, min(first + size, len(ids))))
        starts, ends = len(start.rstrip("\ufffd")), len(end.rstrip("\ufffd"))
        ends += end.endswith("\ufffd")  # a character of which a part is there
        spans.append(tuple(min(max(at - prefix, 0), len(text)) for at in (starts, ends)))
    return spans


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 4, 64])
def test_spans_of_every_document(text, size):
    assert chunk_spans(tiny_tokenizer(), 123, text, size) == by_decoding(123, text, size)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=30))
def test_spans_of_any_text(text):
    assert chunk_spans(tiny_tokenizer(), 7, text, 4) == by_decoding(7, text, 4)
