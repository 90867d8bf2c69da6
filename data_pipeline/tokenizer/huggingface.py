"""A backbone's own tokenizer: Hugging Face's tokenizer.json with byte-level BPE, as Qwen3 has."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer.base import METADATA_FILE, Tokenizer, refuse_surrogates

_NEVER_WRITTEN = ("<|endoftext|>", "<|im_start|>")  # free to pad with, best first


class HuggingFaceTokenizer(Tokenizer):
    """Byte-level BPE from a tokenizer.json whose special tokens hold the protocol's.

    Text is encoded as it stands, also where the file asks for Unicode normalisation first.
    Raises DataError when a token has no bytes (the file is of another family), or when text does
    not come back as it was.
    """

    def __init__(self, data: bytes):
        self._data = data
        settings = json.loads(data)
        settings["normalizer"] = None  # NFC would change the text, and with it whose a token is
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
        self._tokenizer.encode_special_tokens = True  # written in text they are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = {token["id"]: token for token in settings["added_tokens"]}
        special = {token["content"]: i for i, token in added.items() if token["special"]}
        control = {token: special.get(token) for token in CONTROL_TOKENS}
        size = self._tokenizer.get_vocab_size()
        super().__init__([self._token_bytes(i, added) for i in range(size)], control)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.pad_id = next(special[token] for token in _NEVER_WRITTEN if token in special)
        for probe in ("  Ångström e\u0301 \n\n 12", "<|im_end|>"):
            if self.decode(self.encode_text(probe)) != probe:
                raise DataError(
                    f"this {METADATA_FILE} does not keep text as it is ({probe!r} comes back "
                    f"{self.decode(self.encode_text(probe))!r}): only lossless byte-level BPE is "
                    "supported"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return HuggingFaceTokenizer, (self._data,)

    def encode_text(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):  # it takes no string that has no UTF-8 form
            refuse_surrogates(text)
            raise

    def files(self) -> dict[str, bytes]:
        return {METADATA_FILE: self._data}

    @classmethod
    def from_folder(cls, folder: Path, metadata: dict[str, Any]) -> HuggingFaceTokenizer:
        path = folder / METADATA_FILE
        try:
            return cls(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # the library raises nothing more precise
            raise DataError(f"{path} is no tokenizer: {error}") from error

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


@cache
def _byte_of() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al. 2019): printable
    ones for themselves, the others for those from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
