"""The tokenizer in a GGUF file's fields, as the tokenizer.json it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(words: bool) -> dict[str, Any]:
    """Bytes as characters; words: cut into words by GPT-2's pattern as well."""
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words,
    }  # fmt: skip


def _cut(first: dict[str, Any], words: bool = False) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, _bytes(words)]}


def _pattern(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _WORDS.format(digits=digits)}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


# How text is cut before pairs are merged, by the name that the field has for it.
_QWEN = {"pre_tokenizer": _cut(_pattern("")), "normalizer": {"type": "NFC"}}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _bytes(True)},
    "smollm": {"pre_tokenizer": _cut({"type": "Digits", "individual_digits": True}, True)},
    "llama-bpe": {"pre_tokenizer": _cut(_pattern("{1,3}")), "ignore_merges": True},
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
}


def tokenizer_json(fields: Mapping[str, Any], path: Path) -> bytes:
    """tokenizer.json of the fields of a GGUF file.

    Raises DataError for a tokenizer that is not byte-level BPE, or cuts text in an unknown way.
    """
    kind, cut = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        raise DataError(
            f"{path} has a tokenizer of tokenizer.ggml.model {kind!r}, tokenizer.ggml.pre {cut!r}: "
            f"supported is gpt2 with {', '.join(PRE_TOKENIZERS)}; import its Hugging Face folder"
        )
    tokens, merges = _strings(fields, "tokens", path), _strings(fields, "merges", path)
    types = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise DataError(
            f"{path} has {len(tokens)} tokens, but types of {len(types)}: is it damaged?"
        )
    way = PRE_TOKENIZERS[cut]
    marked = ((i, kind) for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED))
    added = [_added(i, tokens[i], kind) for i, kind in marked]
    made = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added,
        "normalizer": way.get("normalizer"), "pre_tokenizer": way["pre_tokenizer"],
        "post_processor": None,
        "decoder": _bytes(True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": way.get("ignore_merges", False),
            "vocab": {t: i for i, t in enumerate(tokens) if types[i] != _UNUSED},
            "merges": [pair.split(" ") for pair in merges],
        },
    }  # fmt: skip
    return json.dumps(made, ensure_ascii=False, indent=1).encode()


def _strings(fields: Mapping[str, Any], name: str, path: Path) -> list[str]:
    found = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise DataError(f"{path} has no list of strings tokenizer.ggml.{name}: is it damaged?")
    return found


def settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: what transformers wants to know beyond the vocabulary."""
    tokens = fields.get("tokenizer.ggml.tokens", [])
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        place = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if place is not None and place < len(tokens):
            found[f"{ours}_token"] = tokens[place]
    return found


def _added(i: int, token: str, kind: int) -> dict[str, Any]:
    return {
        "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": kind == _CONTROL,
    }  # fmt: skip
