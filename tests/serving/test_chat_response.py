"""The answer's text, however it is cut into pieces."""

import pytest

from msa_train.errors import BankError, ConfigError, RankError
from msa_train.serving.chat_response import AnswerText
from msa_train.serving.errors import ApiError, to_api_error

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


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("rounds is 0"), 400, "rounds is 0"),
        (RankError("rank 1 did not answer"), 503, "rank 1"),
        (BankError("layer-2.k was changed"), 500, "layer-2.k"),
        (TimeoutError("inside"), 504, "longer than the server allows"),
        (KeyError("/inside"), 500, "its log says why"),
        (ApiError(409, "x", "taken"), 409, "taken"),
    ],
)
def test_what_a_client_is_told_of_errors(error, status, said):
    told = to_api_error(error)
    assert told.status == status and said in told.message and "inside" not in told.message
    assert told.body["error"].keys() == {"message", "type", "code"}
