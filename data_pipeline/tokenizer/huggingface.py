"""A backbone's own tokenizer: Hugging Face's tokenizer.json with byte-level BPE, as Qwen3 has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer.base import (
    METADATA_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    Tokenizer,
    refuse_surrogates,
)

_BESIDE = (SETTINGS_FILE, TEMPLATE_FILE)
_NEVER_WRITTEN = ("<|endoftext|>", "<|im_start|>")  # free to pad with, best first
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class HuggingFaceTokenizer(Tokenizer):
    """Byte-level BPE from a tokenizer.json.

    A control token of the protocol that is not among its special tokens is spelled: as its text is
    encoded, but with one word left in two parts that text is always encoded to one of. So a control
    token is never read out of text here either.
    Text is encoded as it stands, also where the file asks for Unicode normalisation first.
    Raises DataError when a token has no bytes (the file is of another family), or when text does
    not come back as it was.

    spelled: the control tokens that the vocabulary lacks. beside: other files of its folder, by
    name, which go where it goes.
    """

    def __init__(self, data: bytes, beside: Mapping[str, bytes] = {}):
        self._data, self._beside = data, dict(beside)
        settings = json.loads(data)
        settings["normalizer"] = None  # NFC would change the text, and with it whose a token is
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
        self._tokenizer.encode_special_tokens = True  # written in text they are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = {token["id"]: token for token in settings["added_tokens"]}
        special = {token["content"]: i for i, token in added.items() if token["special"]}
        self.spelled = tuple(token for token in CONTROL_TOKENS if token not in special)
        control = {token: (special[token],) for token in CONTROL_TOKENS if token in special}
        control |= {token: self._spelling(token, settings) for token in self.spelled}
        size = self._tokenizer.get_vocab_size()
        super().__init__([self._token_bytes(i, added) for i in range(size)], control)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.special = frozenset(special.values())
        self.pad_id = _padding(special)
        for probe in ("  Ångström e\u0301 \n\n 12", "<|im_end|>"):
            if self.decode(self.encode_text(probe)) != probe:
                raise DataError(
                    f"this {METADATA_FILE} does not keep text as it is ({probe!r} comes back "
                    f"{self.decode(self.encode_text(probe))!r}): only lossless byte-level BPE is "
                    "supported"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return HuggingFaceTokenizer, (self._data, self._beside)

    def with_control_tokens(self) -> HuggingFaceTokenizer:
        """The same with what is spelled as special tokens of their own, after all others."""
        settings, first = json.loads(self._data), self.vocab_size
        settings["added_tokens"] += [
            {"id": first + place, "content": token, "special": True, **_SPECIAL}
            for place, token in enumerate(self.spelled)
        ]
        data = json.dumps(settings, ensure_ascii=False).encode()
        return HuggingFaceTokenizer(data, self._beside)

    def encode_text(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):  # it takes no string that has no UTF-8 form
            refuse_surrogates(text)
            raise

    def files(self) -> dict[str, bytes]:
        return {METADATA_FILE: self._data, **self._beside}

    @classmethod
    def from_folder(cls, folder: Path, metadata: dict[str, Any]) -> HuggingFaceTokenizer:
        path = folder / METADATA_FILE
        there = [file for name in _BESIDE if (file := folder / name).is_file()]
        return cls.of(path.read_bytes(), path, {file.name: file.read_bytes() for file in there})

    @classmethod
    def of(
        cls, data: bytes, source: Path | str, beside: Mapping[str, bytes] = {}
    ) -> HuggingFaceTokenizer:
        """The tokenizer of a tokenizer.json; source: where it came from, which errors name."""
        try:
            return cls(data, beside)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        except Exception as error:  # the library raises nothing more precise
            raise DataError(f"{source} is no tokenizer: {error}") from error

    def _spelling(self, control: str, settings: dict[str, Any]) -> tuple[int, ...]:
        """Ids for a control token that the vocabulary lacks; none where no word can be parted.

        A pair that merges never stays apart where text is encoded: byte-level BPE ends when no
        pair merges any more, and within a word nothing else keeps two letters apart.
        """
        ids = self._tokenizer.encode(control, add_special_tokens=False).ids
        parts = {}
        for merge in settings["model"].get("merges", ()):
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            parts.setdefault(first + second, (first, second))
        words = [self._tokenizer.id_to_token(i) for i in ids]
        for place in sorted(range(len(ids)), key=lambda place: -len(words[place])):
            if words[place].isascii() and words[place].isalpha() and words[place] in parts:
                two = map(self._tokenizer.token_to_id, parts[words[place]])
                return (*ids[:place], *two, *ids[place + 1 :])
        return ()

    def _token_bytes(self, i: int, added: dict[int, dict[str, Any]]) -> bytes:
        token = self._tokenizer.id_to_token(i)
        if i in added:
            return added[i]["content"].encode()
        if token is None:
            return b""  # a hole in the vocabulary
        try:
            return bytes(_byte_of()[character] for character in token)
        except KeyError as error:
            raise DataError(
                f"token {i} is {token!r}, which is not spelled in bytes: only byte-level BPE is "
                "supported"
            ) from error


def _padding(special: dict[str, int]) -> int:
    """A special token that nothing encodes to."""
    free = [token for token in special if token not in CONTROL_TOKENS]
    for token in (*_NEVER_WRITTEN, *free):
        if token in special:
            return special[token]
    raise DataError(f"this {METADATA_FILE} has no special token that is free to pad with")


@cache
def _byte_of() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al. 2019): printable
    ones for themselves, the others for those from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
