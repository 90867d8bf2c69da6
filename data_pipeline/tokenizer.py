"""SentencePiece tokenizer that never reads a control token out of text (SPEC section 4).

Lossless: `decode(encode_text(s)) == s` for every string of Unicode characters.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece

from data_pipeline.errors import DataError
from data_pipeline.protocol import CONTROL_TOKENS, IM_END
from data_pipeline.schema import Piece, Role

MODEL_FILE, METADATA_FILE = "tokenizer.model", "tokenizer.json"
KIND = "msa-sentencepiece"
# SentencePiece writes a space as this character, so a real one is spelled in byte tokens.
_SPACE_MARK = "\u2581"


@dataclass(frozen=True)
class Encoded:
    """Tokens of a sequence of pieces; three lists of one length.

    roles: class of each token. labels: whether the model writes it (not shifted).
    """

    tokens: list[int]
    roles: list[Role]
    labels: list[bool]

    @property
    def head_length(self) -> int:
        """Leading template tokens: they never see the memory (SPEC section 1)."""
        return next(
            (i for i, role in enumerate(self.roles) if role != Role.TEMPLATE), len(self.roles)
        )


class Tokenizer:
    """A trained SentencePiece model with the protocol's control tokens. Picklable."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bytes = [self._token_bytes(i) for i in range(self.vocab_size)]
        self._control = {token: self._processor.piece_to_id(token) for token in CONTROL_TOKENS}
        missing = [t for t, i in self._control.items() if not self._processor.is_control(i)]
        if missing:
            raise DataError(
                f"the tokenizer has no control token {', '.join(missing)}: "
                "it was not trained for this text protocol; train one with train_sentencepiece"
            )
        self._space_mark = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in b"\xe2\x96\x81"]
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._model,)

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def pad_id(self) -> int:
        """Never encoded (bytes stand in for unknown characters), so free to pad with."""
        return self._processor.unk_id()

    @property
    def end_id(self) -> int:
        """`<|im_end|>`: the end of an answer."""
        return self.control_id(IM_END)

    def control_id(self, token: str) -> int:
        try:
            return self._control[token]
        except KeyError:
            raise DataError(
                f"{token!r} is no control token: there are {', '.join(CONTROL_TOKENS)}"
            ) from None

    def encode_text(self, text: str) -> list[int]:
        """Ids of text alone: `<|im_end|>` written in a document is text, not a control token."""
        if _SPACE_MARK not in text:
            return self._encode(text)
        first, *others = text.split(_SPACE_MARK)
        ids = self._encode(first)
        for part in others:
            ids += self._space_mark + self._encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """encode_text of each text."""
        return [self.encode_text(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens are shown as their name, broken UTF-8 as U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def encode_pieces(self, pieces: Iterable[Piece]) -> Encoded:
        """Tokens, classes and labels of pieces.

        Each stretch between control tokens is tokenised as ONE string, whatever pieces it is cut
        into; a token takes the class and label of its first character. Template text is a stretch
        of its own, as in the published engine (whose vocabulary could merge the head's newline
        with the question's).
        """
        encoded = Encoded([], [], [])
        for (control, _), stretch in groupby(
            pieces, key=lambda piece: (piece.control, piece.role == Role.TEMPLATE)
        ):
            parts = list(stretch)
            if control:
                for piece in parts:
                    _extend(encoded, [self.control_id(piece.text)], [piece])
            else:
                ids = self.encode_text("".join(piece.text for piece in parts))
                _extend(encoded, ids, self._owners(ids, parts))
        return encoded

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.model and tokenizer.json (kind, control tokens, fingerprint)."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._model)
        metadata = {
            "kind": KIND,
            "vocab_size": self.vocab_size,
            "control_tokens": self._control,
            "fingerprint": self.fingerprint,
        }
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Raises DataError when a file is missing, of another kind, or was changed."""
        folder = Path(directory)
        try:
            metadata = json.loads((folder / METADATA_FILE).read_text())
            model = (folder / MODEL_FILE).read_bytes()
        except FileNotFoundError as error:
            raise DataError(
                f"no tokenizer in {folder}: {error.filename} is missing; "
                "give the folder of a shard set or of an export"
            ) from error
        except json.JSONDecodeError as error:
            raise DataError(f"{folder / METADATA_FILE} is not JSON: {error}") from error
        kind = metadata.get("kind") if isinstance(metadata, dict) else None
        if kind != KIND:
            raise DataError(f"{folder / METADATA_FILE} is of kind {kind!r}, not {KIND!r}")
        if hashlib.sha256(model).hexdigest() != metadata.get("fingerprint"):
            raise DataError(
                f"{folder / MODEL_FILE} does not match the fingerprint in {METADATA_FILE}: "
                "one of the two files was replaced; copy both again"
            )
        return cls(model)

    def _encode(self, text: str) -> list[int]:
        try:
            return self._processor.encode(text)
        except RuntimeError as error:  # it takes no string that has no UTF-8 form
            if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                raise DataError(f"text holds half a character (a surrogate): {text!r}") from error
            raise

    def _token_bytes(self, i: int) -> bytes:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(_SPACE_MARK, " ").encode()

    def _owners(self, ids: list[int], parts: list[Piece]) -> list[Piece]:
        """The piece that holds the first byte of each token."""
        if len(parts) == 1:
            return parts * len(ids)
        ends, end = [], 0
        for piece in parts:
            end += len(piece.text.encode())
            ends.append(end)
        owners, at, current = [], 0, 0
        for i in ids:
            while at >= ends[current]:
                current += 1
            owners.append(parts[current])
            at += len(self._bytes[i])
        return owners


def _extend(encoded: Encoded, ids: list[int], owners: list[Piece]) -> None:
    encoded.tokens.extend(ids)
    encoded.roles.extend(piece.role for piece in owners)
    encoded.labels.extend(piece.label for piece in owners)


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int = 4096,
    model_type: str = "bpe",
    symbols: Sequence[str] = (),
) -> Tokenizer:
    """Train a tokenizer on texts; equal texts and settings give an equal tokenizer.

    symbols: strings that become one token each (template phrases, for a shorter context).
    Raises DataError when the texts cannot fill the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
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
        raise DataError(
            f"no tokenizer of vocab_size {vocab_size} and model_type {model_type!r} can be "
            f"trained on these texts: {error}"
        ) from error
    return Tokenizer(model.getvalue())
