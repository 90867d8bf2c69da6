import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

TEXTS = [f"[{i}]. the word {i} and\nanother  word.\tEnd" for i in range(300)]
TOKENIZER = train_sentencepiece(TEXTS, 310)


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
    assert not {TOKENIZER.control_ids(token)[0] for token in CONTROL_TOKENS} & set(ids)
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


def test_special_tokens_are_those_that_are_no_text():
    control = {TOKENIZER.control_ids(token)[0] for token in CONTROL_TOKENS}
    assert TOKENIZER.special == {TOKENIZER.pad_id, *control}


def test_digits_and_newlines_are_tokens_of_their_own():
    ids = TOKENIZER.encode_text("[120]\n\n120")
    assert [TOKENIZER.decode([i]) for i in ids if TOKENIZER.decode([i]) in "120\n"] == list(
        "120\n\n120"
    )


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
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.encode_text(TEXTS[0]) == TOKENIZER.encode_text(TEXTS[0])
    metadata = json.loads((tmp_path / "tokenizer.json").read_text())
    assert metadata["control_tokens"] == {t: loaded.control_ids(t)[0] for t in CONTROL_TOKENS}


def test_pickled():
    assert pickle.loads(pickle.dumps(TOKENIZER)).fingerprint == TOKENIZER.fingerprint
