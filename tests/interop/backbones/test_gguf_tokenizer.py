"""Tokenizers rebuilt from a GGUF file's fields encode as those they were made of."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from data_pipeline.errors import DataError
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.interop.backbones.gguf_tokenizer import settings, tokenizer_json
from tests.data_pipeline.tokenizer.test_huggingface import trained
from tests.interop.backbones.models import tokenizer_fields

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# The patterns as Qwen's and Llama 3's own files have them.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA), "isolated"), BYTES]),
}
CORPUS = [
    Path(__file__).read_text(),
    "In 1984, 12345 people's cars -- they're old;\r\n\r\n  isn't it?\t\tNaïve 東京 café 🙂 e\u0301",
    "".join(f"{i}{' ' * (i % 4)}x" for i in range(3000)),
    "<|im_end|> <think> [12]. {a}[12]",
]


def fields_of(data, pre):
    fields = tokenizer_fields(data)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": fields["tokens"], "tokenizer.ggml.token_type": fields["types"],
        "tokenizer.ggml.merges": fields["merges"], "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }  # fmt: skip


@pytest.mark.parametrize("pre", CUTS)
def test_it_encodes_as_the_original(pre):
    texts = [line for text in CORPUS for line in text.splitlines(keepends=True)]
    data = trained(texts=texts * 3, cut=CUTS[pre], normal=pre == "qwen2")
    made = tokenizer_json(fields_of(data, pre), Path("x.gguf"))
    assert json.loads(made)["normalizer"] == json.loads(data)["normalizer"]
    original, rebuilt = HuggingFaceTokenizer(data), HuggingFaceTokenizer(made)
    for text in CORPUS:
        assert rebuilt.encode_text(text) == original.encode_text(text)
    assert rebuilt.vocab_size == original.vocab_size
    assert rebuilt.control_ids("<|im_end|>") == original.control_ids("<|im_end|>")


def test_rows_without_a_token_are_left_out():
    data = trained()
    fields = fields_of(data, "gpt-2")
    fields["tokenizer.ggml.tokens"] += ["[PAD401]", "[PAD402]"]
    fields["tokenizer.ggml.token_type"] += [5, 5]
    rebuilt = HuggingFaceTokenizer(tokenizer_json(fields, Path("x.gguf")))
    assert rebuilt.vocab_size == HuggingFaceTokenizer(data).vocab_size


@pytest.mark.parametrize(("model", "pre"), [("llama", "default"), ("gpt2", "tekken"), (None, None)])
def test_other_tokenizers_are_refused_by_name(model, pre):
    fields = {"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre}
    with pytest.raises(DataError, match=rf"model {model!r}, tokenizer\.ggml\.pre {pre!r}"):
        tokenizer_json(fields, Path("x.gguf"))


@pytest.mark.parametrize("name", ["tokens", "merges", "token_type"])
def test_damaged_fields_are_refused_by_name(name):
    fields = fields_of(trained(), "gpt-2")
    fields[f"tokenizer.ggml.{name}"] = [1, 2]
    with pytest.raises(DataError, match=r"x\.gguf has .*(tokenizer\.ggml\.|types of 2).*damaged"):
        tokenizer_json(fields, Path("x.gguf"))


def test_marked_tokens_are_named():
    found = settings(fields_of(trained(), "gpt-2"))
    assert (found["eos_token"], found["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert "bos_token" not in found
