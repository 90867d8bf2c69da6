"""What every tokenizer does: text and pieces to tokens, and back (SPEC section 4).

Lossless: `decode(encode_text(s)) == s` for every string of Unicode characters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Literal

from data_pipeline import files
from data_pipeline.errors import DataError, check_least
from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.schema import Piece, Role

METADATA_FILE = "tokenizer.json"
MODEL_FILE = "tokenizer.model"  # of SentencePiece alone
FILES = (METADATA_FILE, MODEL_FILE)
# Beside a backbone's: nothing here reads them, transformers does.
SETTINGS_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece tokenizer that is trained on the corpus.

    model_type: byte-pair encoding, the only kind; configs and shard sets name it.
    phrases: the fixed phrases of protocol and needles become one token each: shorter contexts.
    placed_digits: a number in brackets is spelled in tokens of two digits that know their place
        (`[12`, `34`, `5]`), so that a bag of tokens, which pooled memory is, holds a number of up
        to six digits whole; otherwise every digit is one token.
    needle_texts: needle documents to train on. word_repeats: how often each word of the needle
        lists is repeated, so that it becomes one token. passages: of each dataset, at most.
    path: take the tokenizer of this folder (of an export or a shard set) instead; the other
        settings are then ignored.
    """

    vocab_size: int = 4096
    model_type: Literal["bpe"] = "bpe"
    phrases: bool = False
    placed_digits: bool = False
    needle_texts: int = 8000
    word_repeats: int = 400
    passages: int = 20_000
    path: str | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 512:
            raise DataError(
                f"data.tokenizer.vocab_size is {self.vocab_size}: give 512 or more (256 are bytes)"
            )
        check_least(0, self, "data.tokenizer.", "needle_texts", "word_repeats", "passages")


@dataclass(frozen=True)
class TokenizedPieces:
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


class Tokenizer(ABC):
    """A tokenizer with the protocol's control tokens. Picklable.

    token_bytes: the bytes of every token. control: the id of every control token, or several ids
    that stand for it and that no text is ever encoded to. special: ids of tokens that are no text
    (control tokens among them). pad_id: never encoded, so free to pad with.
    """

    fingerprint: str
    special: frozenset[int]
    pad_id: int

    def __init__(self, token_bytes: list[bytes], control: dict[str, tuple[int, ...]]):
        if missing := [token for token in CONTROL_TOKENS if not control[token]]:
            raise DataError(
                f"the tokenizer has no control token {', '.join(missing)}: "
                "it was not made for this text protocol; train one, or take a backbone's"
            )
        self._bytes, self._control = token_bytes, control

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def control_ids(self, token: str) -> tuple[int, ...]:
        """Its id; several where the vocabulary has no such token and spells it."""
        try:
            return self._control[token]
        except KeyError:
            raise DataError(
                f"{token!r} is no control token: there are {', '.join(CONTROL_TOKENS)}"
            ) from None

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Ids of text alone: `<|im_end|>` written in a document is text, not a control token."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """What `save` writes, by file name."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; a character may need those of several."""
        return self._bytes[token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens are shown as their name, broken UTF-8 as U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def encode_pieces(self, pieces: Iterable[Piece]) -> TokenizedPieces:
        """Tokens, classes and labels of pieces.

        The text between two control tokens is tokenised as ONE string, whatever pieces it is cut
        into; a token takes the class and label of its first character. Template text is a string
        of its own, as in the published engine (whose vocabulary could merge the head's newline
        with the question's).
        """
        encoded = TokenizedPieces([], [], [])
        for (control, _), together in groupby(
            pieces, key=lambda piece: (piece.control, piece.role == Role.TEMPLATE)
        ):
            parts = list(together)
            if control:
                for piece in parts:
                    ids = self.control_ids(piece.text)
                    _extend(encoded, ids, [piece] * len(ids))
            else:
                ids = self.encode_text("".join(piece.text for piece in parts))
                _extend(encoded, ids, self._owners(ids, parts))
        return encoded

    def save(self, directory: Path | str) -> None:
        """Write the tokenizer's files into a folder."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            files.replace_file(folder / name, data)

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, metadata: dict[str, Any]) -> Tokenizer:
        """The tokenizer of a folder whose METADATA_FILE holds `metadata`."""

    def _owners(self, ids: list[int], parts: list[Piece]) -> list[Piece]:
        """The piece that holds the first byte of each token."""
        if len(parts) == 1:
            return parts * len(ids)
        ends = list(accumulate(len(piece.text.encode()) for piece in parts))
        begins = accumulate((len(self._bytes[i]) for i in ids[:-1]), initial=0)
        return [parts[bisect_right(ends, at)] for at in begins] if ids else []


def _extend(encoded: TokenizedPieces, ids: Sequence[int], owners: list[Piece]) -> None:
    encoded.tokens.extend(ids)
    encoded.roles.extend(piece.role for piece in owners)
    encoded.labels.extend(piece.label for piece in owners)


def refuse_surrogates(text: str) -> None:
    """Raises DataError for half a character, which has no UTF-8 form."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"text holds half a character (a surrogate): {text!r}")
