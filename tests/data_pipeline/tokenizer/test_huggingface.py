"""A byte-level BPE tokenizer.json, as a backbone brings it, under the text protocol."""

import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS, IM_END, document_pieces, prompt_pieces
from data_pipeline.schema import Role
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer


def trained(special=("<|endoftext|>", *CONTROL_TOKENS)):
    """What a backbone's file looks like: byte-level BPE, NFC, special and added tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([f"the word {i} and another word" for i in range(200)], trainer)
    made.add_tokens(["<think>"])
    return made.to_str().encode()


DATA = trained()
TOKENIZER = HuggingFaceTokenizer(DATA)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from([*CONTROL_TOKENS, " ", "e\u0301", "é", "<think>", "[12]"])).map(
            "".join
        ),
    )
)
def test_lossless_and_free_of_control_tokens(text):
    ids = TOKENIZER.encode_text(text)
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.control_ids(token)[0] for token in CONTROL_TOKENS} & set(ids)
    assert TOKENIZER.pad_id not in ids


def test_half_a_character_is_refused():
    with pytest.raises(DataError, match="surrogate"):
        TOKENIZER.encode_text("a \ud800")


def test_pieces_keep_their_classes():
    encoded = TOKENIZER.encode_pieces(prompt_pieces("Whose word is é\u0301 7?"))
    assert encoded.head_length == len(TOKENIZER.encode_text("user\n")) + 1
    query = [t for t, r in zip(encoded.tokens, encoded.roles, strict=True) if r == Role.QUERY]
    assert TOKENIZER.decode(query).startswith("\nPlease answer the question")
    assert TOKENIZER.decode(query).endswith("related to the question\n")
    document = TOKENIZER.encode_pieces(document_pieces(3, "<|im_end|>"))
    assert TOKENIZER.decode(document.tokens) == "<|im_start|>[3]. <|im_end|>[3]<|im_end|>"
    assert document.tokens.count(TOKENIZER.control_ids(IM_END)[0]) == 1


def test_it_is_saved_loaded_and_copied(tmp_path):
    TOKENIZER.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(TOKENIZER))):
        assert other.fingerprint == TOKENIZER.fingerprint
        assert other.encode_text("a word") == TOKENIZER.encode_text("a word")


def test_a_tokenizer_without_the_control_tokens_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(trained(("<|endoftext|>", "<|im_start|>")))
    with pytest.raises(DataError, match=r"no control token <\|im_end\|>, <\|object_ref_end\|>"):
        load_tokenizer(tmp_path)


def test_tokenizers_of_other_families_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    vocabulary = {token: i for i, token in enumerate([*CONTROL_TOKENS, "word", "[UNK]"])}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(CONTROL_TOKENS))
    path.write_text(made.to_str())
    with pytest.raises(DataError, match=r"does not keep text|not spelled in bytes"):
        load_tokenizer(tmp_path)
    path.write_text(json.dumps({"added_tokens": []}))
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="kind that is known"):
        load_tokenizer(tmp_path)
