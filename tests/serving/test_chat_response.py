"""The answer's text, however it is cut into pieces."""

import pytest

from msa_train.serving.chat_response import AnswerText

PHRASE = "The answer to the question is:"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{PHRASE} 4711", "4711"),
        (f" {PHRASE}  4711 \n", "4711"),
        ("4711", "4711"),
        ("The answer", "The answer"),
        ("The answer is here: x", "The answer is here: x"),
        (f"{PHRASE} The answer to", "The answer to"),
        (f"{PHRASE}{PHRASE}", PHRASE),
        (PHRASE, ""),
        ("", ""),
        ("a  b\n\nc ", "a  b\n\nc"),
        (f"{PHRASE} T", "T"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_phrase_and_outer_white_space_are_not_shown(written, shown, size):
    text = AnswerText()
    pieces = [text.more(written[at : at + size]) for at in range(0, len(written), size)]
    assert "".join(pieces) + text.rest() == shown


def test_text_is_shown_as_soon_as_it_can_be():
    text = AnswerText()
    assert [text.more(piece) for piece in (PHRASE, " 47", "11", " ", "x")] == [
        "", "47", "11", "", " x",
    ]  # fmt: skip
