"""The tokenizer trained here, and a backbone's, through AutoTokenizer."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS, IM_END
from msa_train.interop.huggingface.tokenizer import MSATokenizer
from tests.interop.huggingface.folders import imported, tokenizer_of, trained_here
from tests.memory.tiny import TEXTS, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(trained_here())


@settings(deadline=None, max_examples=40)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*TEXTS, " ", "\n", "▁"])).map("".join)))
def test_ids_are_our_own_and_text_comes_back(tokenizer, text):
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert ids == tiny_tokenizer().encode_text(text)
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_special(tokenizer):
    assert type(tokenizer) is MSATokenizer and tokenizer.eos_token == IM_END
    own = tiny_tokenizer()
    for token in CONTROL_TOKENS:
        assert tokenizer(f"a{token}b").input_ids[1:-1][-1] in own.control_ids(token) or (
            own.control_ids(token)[0] in tokenizer(f"a{token}b").input_ids
        )
    ids = tokenizer(f"Rain.{IM_END}").input_ids
    assert ids[-1] == own.control_ids(IM_END)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Rain."
    assert len(tokenizer) == tokenizer.vocab_size == own.vocab_size
    assert tokenizer.pad_token_id == own.pad_id
    padded = tokenizer(["Rain.", "x"], padding=True)
    assert padded.attention_mask[1][0] == 0 and padded.input_ids[1][0] == own.pad_id
    assert set(padded) == {"input_ids", "attention_mask"}


def test_it_is_saved_byte_for_byte(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert MSATokenizer.from_pretrained(tmp_path)("Rain.") == tokenizer("Rain.")
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (trained_here() / name).read_bytes()


def test_a_backbones_is_its_own_with_or_without_its_settings(tmp_path):
    expected = tokenizer_of(imported("llama")[1])
    folder = shutil.copytree(imported("llama")[1], tmp_path / "start")
    (folder / "tokenizer_config.json").unlink()
    bare = AutoTokenizer.from_pretrained(folder)
    assert bare("the word").input_ids == expected("the word").input_ids
    assert (bare.eos_token, bare.pad_token, bare.padding_side) == (IM_END, "<|endoftext|>", "left")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokenizer in"):
        MSATokenizer.from_pretrained(tmp_path)
