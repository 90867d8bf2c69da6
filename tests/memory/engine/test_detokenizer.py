"""Text as it is written: whole characters, and nothing of a stop string."""

import random

import pytest

from data_pipeline.protocol import ANSWER, IM_END, REF_END
from msa_train.memory.engine.detokenizer import Detokenizer
from tests.data_pipeline.tokenizer.test_huggingface import SPELLED
from tests.memory.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BYTES = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}


def written(detokenizer, tokens):
    """Pieces handed out while `tokens` are written, one at a time."""
    pieces = []
    for token in tokens:
        detokenizer.append(token)
        ended = detokenizer.control is not None or detokenizer.stopped
        pieces.append(detokenizer.new_text(ended))
        if ended:
            break
    return pieces


def test_characters_come_whole():
    text = "Naïve 東京 café 🙂"
    tokens = [BYTES[bytes([byte])] for byte in text.encode()]  # a token per byte
    pieces = written(Detokenizer(TOKENIZER), tokens)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if len(piece.encode()) > 1] == ["ï", "東", "京", "é", "🙂"]


def test_bytes_that_are_no_text_are_replaced_and_do_not_hold_up_the_rest():
    tokens = [BYTES[bytes([byte])] for byte in b"a\xff\xe6\xe6\x9d\xb1b\xe6\x9d"]
    detokenizer = Detokenizer(TOKENIZER)
    assert (
        "".join(written(detokenizer, tokens)) == "a\ufffd\ufffd東b"
    )  # the last one stays incomplete
    assert detokenizer.text == "a\ufffd\ufffd東b" and detokenizer.tokens == 9


def test_a_control_token_is_no_text():
    detokenizer = Detokenizer(TOKENIZER)
    written(detokenizer, [*TOKENIZER.encode_text("Rain."), TOKENIZER.control_ids(IM_END)[0]])
    assert (detokenizer.text, detokenizer.control) == ("Rain.", IM_END)
    assert detokenizer.ids == [*TOKENIZER.encode_text("Rain."), *TOKENIZER.control_ids(IM_END)]


def test_a_control_token_that_is_spelled_is_no_text():
    spelling = SPELLED.control_ids(REF_END)
    detokenizer = Detokenizer(SPELLED)
    pieces = written(detokenizer, [*SPELLED.encode_text("[4][7]"), *spelling])
    assert "".join(pieces) == detokenizer.text == "[4][7]" and detokenizer.control == REF_END
    assert detokenizer.ids == [*SPELLED.encode_text("[4][7]"), *spelling]


@pytest.mark.parametrize("count", range(1, 4))
def test_what_only_begins_like_a_spelled_control_token_is_text(count):
    begun = SPELLED.control_ids(REF_END)[:count]
    shown = SPELLED.decode(begun)
    detokenizer = Detokenizer(SPELLED)
    pieces = written(detokenizer, [*begun, *SPELLED.encode_text(" 7 "), *begun])
    assert "".join(pieces) == f"{shown} 7 " and detokenizer.control is None
    ended = Detokenizer(SPELLED)
    pieces = written(ended, [*begun, *SPELLED.control_ids(IM_END)])
    assert "".join(pieces) == ended.text == shown and ended.control == IM_END
    again = Detokenizer(SPELLED)
    written(again, [*begun, *SPELLED.control_ids(REF_END)])
    assert (again.text, again.control) == (shown, REF_END)


@pytest.mark.parametrize("seed", range(30))
def test_text_ends_before_the_first_stop_string(seed):
    """Whatever the tokens: what is handed out is the text before the stop string, exactly."""
    rng = random.Random(seed)
    text = "".join(rng.choice("abc") for _ in range(40))
    stops = ["".join(rng.choice("abc") for _ in range(rng.randint(1, 4))) for _ in range(2)]
    detokenizer = Detokenizer(TOKENIZER, stops)
    pieces = written(detokenizer, TOKENIZER.encode_text(text))
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found)] if found else text
    assert detokenizer.text == expected and detokenizer.stopped == bool(found)
    rest = detokenizer.new_text(ended=True)
    assert "".join(pieces) + rest == expected


def test_a_stop_string_is_not_looked_for_in_the_opening():
    detokenizer = Detokenizer(TOKENIZER, [" is", "answer", "7"], ANSWER)
    pieces = written(detokenizer, TOKENIZER.encode_text(f"{ANSWER}it is 4711"))
    assert "".join(pieces) == detokenizer.text == f"{ANSWER}it"
    other = Detokenizer(TOKENIZER, [" is"], ANSWER)  # a model that forgot the opening
    written(other, TOKENIZER.encode_text("The code is 4711"))
    assert other.text == "The code"
