import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS, document_pieces, prompt_pieces
from data_pipeline.schema import Piece, Role
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

TEXTS = [f"[{i}]. the word {i} and\nanother  word.\tEnd" for i in range(300)]
TOKENIZER = train_sentencepiece(TEXTS, 310)


def shown(encoded, role):
    ids = [t for t, r in zip(encoded.tokens, encoded.roles, strict=True) if r == role]
    return TOKENIZER.decode(ids)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet=" \n\t\u2581a[0]<>|.\0é漢\U0001f600"),
        st.lists(st.sampled_from([*CONTROL_TOKENS, " ", "\u2581", "<0x41>", "<unk>", "[12]"])).map(
            "".join
        ),
    )
)
def test_lossless_and_free_of_control_tokens(text):
    ids = TOKENIZER.encode_text(text)
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.control_id(token) for token in CONTROL_TOKENS} & set(ids)
    assert TOKENIZER.pad_id not in ids


def test_what_goes_wrong_while_texts_are_read_comes_out():
    def broken():
        yield "a text"
        raise DataError("corpus.jsonl, line 2")

    with pytest.raises(DataError, match=r"^corpus\.jsonl, line 2$"):
        train_sentencepiece(broken(), 300)


def test_half_a_character_is_refused():
    with pytest.raises(DataError, match="surrogate"):
        TOKENIZER.encode_text("\ud800")


def test_digits_and_newlines_are_tokens_of_their_own():
    ids = TOKENIZER.encode_text("[120]\n\n120")
    assert [TOKENIZER.decode([i]) for i in ids if TOKENIZER.decode([i]) in "120\n"] == list(
        "120\n\n120"
    )


def test_control_tokens_decode_to_their_names():
    pieces = document_pieces(3, "<|im_end|>")
    encoded = TOKENIZER.encode_pieces(pieces)
    assert TOKENIZER.decode(encoded.tokens) == "<|im_start|>[3]. <|im_end|>[3]<|im_end|>"
    assert encoded.tokens.count(TOKENIZER.end_id) == 1
    with pytest.raises(DataError, match=r"<\|endoftext\|>"):
        TOKENIZER.control_id("<|endoftext|>")


def test_a_stretch_is_one_string_and_flags_follow_the_first_character():
    whole = TOKENIZER.encode_text("the word another")
    cut = [Piece("the wo", Role.QUERY), Piece("rd ano", label=True), Piece("ther", Role.QUERY)]
    encoded = TOKENIZER.encode_pieces(cut)
    assert encoded.tokens == whole
    starts, at = [], 0
    for i in whole:
        starts.append(at)
        at += len(TOKENIZER.decode([i]))
    assert encoded.labels == [6 <= start < 12 for start in starts]
    assert [role == Role.QUERY for role in encoded.roles] == [not 6 <= s < 12 for s in starts]


def test_flags_follow_characters_of_several_bytes():
    encoded = TOKENIZER.encode_pieces([Piece("漢é", Role.QUERY), Piece(""), Piece("\u2581字")])
    assert shown(encoded, Role.QUERY) == "漢é"
    assert shown(encoded, Role.RESPONSE) == "\u2581字"


def test_the_template_head_is_a_stretch_of_its_own():
    encoded = TOKENIZER.encode_pieces(prompt_pieces("Who?"))
    head = [TOKENIZER.control_id("<|im_start|>"), *TOKENIZER.encode_text("user\n")]
    assert encoded.tokens[: encoded.head_length] == head
    assert shown(encoded, Role.TEMPLATE) == "<|im_start|>user\n<|im_end|>\n"
    assert shown(encoded, Role.QUERY).startswith("\nPlease answer")


def test_batches_are_encoded_as_one_by_one():
    assert TOKENIZER.encode_batch(TEXTS[:5]) == [TOKENIZER.encode_text(t) for t in TEXTS[:5]]


def test_training_is_deterministic():
    assert train_sentencepiece(iter(TEXTS), 310).fingerprint == TOKENIZER.fingerprint
    assert train_sentencepiece(TEXTS, 309).fingerprint != TOKENIZER.fingerprint


def test_symbols_become_one_token_each():
    phrase = "the word of all words in this long phrase is"
    tokenizer = train_sentencepiece(TEXTS, 310, symbols=(phrase, " tail"))
    assert len(tokenizer.encode_text(phrase)) == 1
    assert len(tokenizer.encode_text(" tail")) == 1
    assert tokenizer.decode(tokenizer.encode_text(f"x {phrase} tail")) == f"x {phrase} tail"


def test_a_vocabulary_that_texts_cannot_fill_is_refused():
    with pytest.raises(DataError, match="vocab_size 5000"):
        train_sentencepiece(TEXTS, 5000)


def test_saved_and_loaded(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.encode_text(TEXTS[0]) == TOKENIZER.encode_text(TEXTS[0])
    metadata = json.loads((tmp_path / "tokenizer.json").read_text())
    assert metadata["control_tokens"] == {t: loaded.control_id(t) for t in CONTROL_TOKENS}


def test_pickled():
    assert pickle.loads(pickle.dumps(TOKENIZER)).fingerprint == TOKENIZER.fingerprint


def test_what_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(DataError, match="fingerprint"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "wordpiece"}')
    with pytest.raises(DataError, match="'wordpiece'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Tokenizer.load(tmp_path)
