"""The SentencePiece tokenizer of models that are trained from random weights."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.tokenizer.base import METADATA_FILE, MODEL_FILE, Tokenizer, refuse_surrogates

KIND = "msa-sentencepiece"
# SentencePiece writes a space as this character, so a real one is spelled in byte tokens.
_SPACE_MARK = "\u2581"


class SentencePieceTokenizer(Tokenizer):
    """A trained SentencePiece model."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = {token: processor.piece_to_id(token) for token in CONTROL_TOKENS}
        control = {t: (i,) if processor.is_control(i) else () for t, i in ids.items()}
        super().__init__([self._token_bytes(i) for i in range(processor.vocab_size())], control)
        self._space_mark = [processor.piece_to_id(f"<0x{b:02X}>") for b in b"\xe2\x96\x81"]
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.pad_id = processor.unk_id()  # bytes stand in for unknown characters
        self.special = frozenset({self.pad_id, *(i for each in control.values() for i in each)})

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceTokenizer, (self._model,)

    def encode_text(self, text: str) -> list[int]:
        if _SPACE_MARK not in text:
            return self._encode(text)
        first, *others = text.split(_SPACE_MARK)
        ids = self._encode(first)
        for part in others:
            ids += self._space_mark + self._encode(part)
        return ids

    def files(self) -> dict[str, bytes]:
        metadata = {
            "kind": KIND,
            "vocab_size": self.vocab_size,
            "control_tokens": {token: ids[0] for token, ids in self._control.items()},
            "fingerprint": self.fingerprint,
        }
        text = json.dumps(metadata, indent=2) + "\n"
        return {MODEL_FILE: self._model, METADATA_FILE: text.encode()}

    @classmethod
    def from_folder(cls, folder: Path, metadata: dict[str, Any]) -> SentencePieceTokenizer:
        try:
            model = (folder / MODEL_FILE).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"no tokenizer in {folder}: {error.filename} is missing") from error
        if hashlib.sha256(model).hexdigest() != metadata.get("fingerprint"):
            raise DataError(
                f"{folder / MODEL_FILE} does not match the fingerprint in {METADATA_FILE}: "
                "one of the two files was replaced; copy both again"
            )
        return cls(model)

    def _encode(self, text: str) -> list[int]:
        try:
            return self._processor.encode(text)
        except RuntimeError:  # it takes no string that has no UTF-8 form
            refuse_surrogates(text)
            raise

    def _token_bytes(self, i: int) -> bytes:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(_SPACE_MARK, " ").encode()


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int = 4096,
    symbols: Sequence[str] = (),
) -> SentencePieceTokenizer:
    """Train a tokenizer on texts; equal texts and settings give an equal tokenizer.

    symbols: strings that become one token each (template phrases, for a shorter context).
    Raises DataError when the texts cannot fill the vocabulary.
    """
    model, failed = io.BytesIO(), []

    def watched() -> Iterator[str]:
        """The texts; what goes wrong while they are read would be lost in the library."""
        try:
            yield from texts
        except Exception as error:
            failed.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=watched(),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            byte_fallback=True,
            character_coverage=1.0,
            control_symbols=list(CONTROL_TOKENS),
            user_defined_symbols=["\n", *(s.replace(" ", _SPACE_MARK) for s in symbols)],
            max_sentencepiece_length=max(16, *(len(s) for s in ("", *symbols))),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if failed:
            raise failed[0] from None
        raise DataError(
            f"no tokenizer of vocab_size {vocab_size} can be trained on these texts: {error}"
        ) from error
    return SentencePieceTokenizer(model.getvalue())
