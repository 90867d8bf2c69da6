"""Control tokens of the protocol in a backbone's vocabulary: spelled, or rows of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from msa_train.errors import CheckpointError, ConfigError

ProtocolTokens = Literal["spell", "add"]
VOCABULARY_WEIGHTS = ("model.embed_tokens.weight", "lm_head.weight")
_MULTIPLE = 128  # rows stay a multiple of what they were, up to this: ranks divide them


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that knows the protocol, and the rows that embedding and head need for it.

    rows: of both. pieces: id of an added token -> the ids that its text is encoded to.
    """

    tokenizer: HuggingFaceTokenizer
    rows: int
    pieces: dict[int, list[int]]

    @classmethod
    def of(cls, tokenizer: HuggingFaceTokenizer, rows: int, how: ProtocolTokens) -> Vocabulary:
        """how: what becomes of control tokens that the tokenizer lacks.

        Raises CheckpointError for a tokenizer of more tokens than there are rows.
        """
        if how not in get_args(ProtocolTokens):
            raise ConfigError(
                f"--protocol-tokens is {how!r}: give {' or '.join(get_args(ProtocolTokens))}"
            )
        if tokenizer.vocab_size > rows:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {rows} rows: they "
                "are not of one model"
            )
        if how == "spell" or not tokenizer.spelled:
            return cls(tokenizer, rows, {})
        grown = tokenizer.with_control_tokens()
        pieces = {
            grown.control_ids(token)[0]: tokenizer.encode_text(token) for token in tokenizer.spelled
        }
        if grown.vocab_size > rows:
            multiple = math.gcd(rows, _MULTIPLE)
            rows = math.ceil(grown.vocab_size / multiple) * multiple
        return cls(grown, rows, pieces)

    def with_rows(self, weight: Tensor) -> Tensor:
        """Embedding or head [rows before, d] with the rows of what was added.

        An added token begins as the mean of its pieces' rows, a row that no token has as the mean
        of all.
        """
        if not self.pieces:
            return weight
        grown = weight.new_empty(self.rows, weight.shape[1])
        grown[: len(weight)] = weight
        if self.rows > len(weight):
            grown[len(weight) :] = weight.mean(0, dtype=torch.float32)
        for token, pieces in self.pieces.items():
            grown[token] = weight[pieces].float().mean(0)
        return grown

    def described(self) -> dict[str, str]:
        """What became of each control token that was lacking, for the report."""
        found = {
            token: f"spelled in {len(self.tokenizer.control_ids(token))} ordinary tokens"
            for token in self.tokenizer.spelled
        }
        return found | {
            self.tokenizer.decode([token]): f"added as token {token}, its row the mean of "
            f"{len(pieces)} pieces' rows"
            for token, pieces in self.pieces.items()
        }
