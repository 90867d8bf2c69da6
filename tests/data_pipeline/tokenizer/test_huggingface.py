"""A byte-level BPE tokenizer.json, as a backbone brings it, under the text protocol."""

import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from data_pipeline.errors import DataError
from data_pipeline.protocol import (
    CONTROL_TOKENS,
    IM_END,
    REF_END,
    document_pieces,
    prompt_pieces,
    retrieval_pieces,
)
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer

TEXTS = tuple(f"the word {i} and another word" for i in range(200))
ENDS = (*TEXTS, *["object ref end"] * 20)  # the words of a control token
LACKING = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def trained(special=("<|endoftext|>", *CONTROL_TOKENS), texts=TEXTS, cut=None, normal=True):
    """What a backbone's file looks like: byte-level BPE, NFC, special and added tokens.

    cut: its pre-tokenizer. normal: whether it asks for NFC.
    """
    made = tokenizers.Tokenizer(models.BPE())
    if normal:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
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


def test_special_tokens_are_those_that_are_no_text():
    names = {TOKENIZER.decode([i]) for i in TOKENIZER.special}
    assert names == {"<|endoftext|>", *CONTROL_TOKENS}


def test_half_a_character_is_refused():
    with pytest.raises(DataError, match="surrogate"):
        TOKENIZER.encode_text("a \ud800")


def test_pieces_keep_their_classes():
    encoded = TOKENIZER.encode_pieces(prompt_pieces("Whose word is é\u0301 7?"))
    assert encoded.head_length == len(TOKENIZER.encode_text("user\n")) + 1
    query = [t for t, r in zip(encoded.tokens, encoded.roles, strict=True) if r.routes(frame=True)]
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
    """One whose words it merges nowhere: spelled, it would be what text is encoded to."""
    (tmp_path / "tokenizer.json").write_bytes(trained(LACKING))
    with pytest.raises(DataError, match=r"no control token <\|object_ref_end\|>"):
        load_tokenizer(tmp_path)


SPELLED = HuggingFaceTokenizer(trained(LACKING, ENDS))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from([*CONTROL_TOKENS, "<|ob", "ject", "_ref", "_e", "nd|>", " ", "[12]", "x"])
    ).map("".join)
)
def test_a_control_token_that_is_spelled_is_never_read_out_of_text(text):
    spelling = SPELLED.control_ids(REF_END)
    assert SPELLED.decode(spelling) == REF_END and len(spelling) > 1
    ids = SPELLED.encode_text(text)
    assert SPELLED.decode(ids) == text
    assert not any(tuple(ids[i : i + len(spelling)]) == spelling for i in range(len(ids)))


def test_a_control_token_that_is_spelled_keeps_class_and_label():
    assert SPELLED.spelled == (REF_END,)
    encoded = SPELLED.encode_pieces(retrieval_pieces([4, 7]))
    count = len(SPELLED.control_ids(REF_END))
    assert tuple(encoded.tokens[-count:]) == SPELLED.control_ids(REF_END)
    assert encoded.labels[-count:] == [True] * count
    assert SPELLED.decode(encoded.tokens) == f"[4][7]{REF_END}"
    assert pickle.loads(pickle.dumps(SPELLED)).control_ids(REF_END) == SPELLED.control_ids(REF_END)


def test_a_control_token_can_be_added():
    added = SPELLED.with_control_tokens()
    assert added.spelled == () and added.control_ids(REF_END) == (SPELLED.vocab_size,)
    assert added.decode(added.control_ids(REF_END)) == REF_END
    assert added.encode_text(f"a {REF_END}") == SPELLED.encode_text(f"a {REF_END}")
    assert added.pad_id == SPELLED.pad_id


def test_what_transformers_reads_goes_where_the_tokenizer_goes(tmp_path):
    beside = {
        "tokenizer_config.json": b'{"eos_token": "x"}',
        "chat_template.jinja": b"{{ messages }}",
    }
    for name, content in {"tokenizer.json": DATA, **beside}.items():
        (tmp_path / name).write_bytes(content)
    pickle.loads(pickle.dumps(load_tokenizer(tmp_path))).save(tmp_path / "shards")
    load_tokenizer(tmp_path / "shards").save(tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == {
        "tokenizer.json": DATA, **beside
    }  # fmt: skip
    assert load_tokenizer(tmp_path / "export").fingerprint == TOKENIZER.fingerprint


def test_any_special_token_is_free_to_pad_with():
    tokenizer = HuggingFaceTokenizer(trained(("<|begin_of_text|>",), (*ENDS, *["im start"] * 20)))
    assert tokenizer.spelled == CONTROL_TOKENS
    assert tokenizer.decode([tokenizer.pad_id]) == "<|begin_of_text|>"
    with pytest.raises(DataError, match="free to pad with"):
        HuggingFaceTokenizer(trained((), (*ENDS, *["im start"] * 20)))


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
