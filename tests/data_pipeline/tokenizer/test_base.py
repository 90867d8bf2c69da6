import pytest

from data_pipeline.errors import DataError
from data_pipeline.protocol import IM_END, document_pieces, prompt_pieces
from data_pipeline.schema import Piece, Role
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece

TEXTS = [f"[{i}]. the word {i} and\nanother  word.\tEnd" for i in range(300)]
TOKENIZER = train_sentencepiece(TEXTS, 310)


def shown(encoded, role):
    ids = [t for t, r in zip(encoded.tokens, encoded.roles, strict=True) if r == role]
    return TOKENIZER.decode(ids)


def test_control_tokens_decode_to_their_names():
    pieces = document_pieces(3, "<|im_end|>")
    encoded = TOKENIZER.encode_pieces(pieces)
    assert TOKENIZER.decode(encoded.tokens) == "<|im_start|>[3]. <|im_end|>[3]<|im_end|>"
    assert encoded.tokens.count(TOKENIZER.control_ids(IM_END)[0]) == 1
    with pytest.raises(DataError, match=r"<\|endoftext\|>"):
        TOKENIZER.control_ids("<|endoftext|>")[0]


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
    head = [TOKENIZER.control_ids("<|im_start|>")[0], *TOKENIZER.encode_text("user\n")]
    assert encoded.tokens[: encoded.head_length] == head
    assert shown(encoded, Role.TEMPLATE) == "<|im_start|>user\n<|im_end|>\n"
    assert shown(encoded, Role.FRAME).startswith("\nPlease answer")
    assert shown(encoded, Role.QUERY) == "Who?"


def test_runs_that_name_the_kind_of_tokenizer_still_load():
    """Configs and shard sets made before say model_type; bpe is all there is."""
    from msa_train.config import ConfigError, load_config

    assert load_config(["--data.tokenizer.model_type", "bpe"]) == load_config([])
    with pytest.raises(ConfigError, match=r"model_type[\s\S]*unigram"):
        load_config(["--data.tokenizer.model_type", "unigram"])
