"""Many contexts at once through the serving module: packed prefill, greedy decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.protocol import CONTROL_TOKENS
from data_pipeline.schema import Piece, Role
from data_pipeline.tokenizer import Encoded, Tokenizer
from msa_train.model.attention import Reading
from msa_train.model.batch import context_positions
from msa_train.model.decoder import Memory, MSADecoder

_BROKEN = "\ufffd"  # shown while a character's bytes are not complete


@dataclass
class Stretch:
    """What a model writes between two turns of the engine, token by token."""

    tokenizer: Tokenizer
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    control: str | None = None
    _shown: int = 0

    def append(self, token: int) -> None:
        names = {self.tokenizer.control_id(name): name for name in CONTROL_TOKENS}
        self.control = names.get(token)
        if self.control is None:
            self.tokens.append(token)
            self.text = self.tokenizer.decode(self.tokens)

    def new_text(self) -> str:
        """Text not handed out yet; a character that is still incomplete waits."""
        if self.control is None and self.text.endswith(_BROKEN):
            return ""
        piece, self._shown = self.text[self._shown :], len(self.text)
        return piece


class ContextBatch:
    """m prefilled contexts that grow token by token; each at its own pace."""

    def __init__(
        self,
        model: MSADecoder,
        tokenizer: Tokenizer,
        memory: Memory,
        contexts: Sequence[Sequence[Piece]],
        room: int = 32,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._device = model.model.embed_tokens.weight.device
        encoded = [tokenizer.encode_pieces(pieces) for pieces in contexts]
        ctx_cu = self._cumulative(len(each.tokens) for each in encoded)
        hidden, self._cache = model.prefill(
            self._tensor(token for each in encoded for token in each.tokens),
            ctx_cu,
            torch.cat([self._positions(each) for each in encoded]).to(self._device),
            self._tensor(role == Role.QUERY for each in encoded for role in each.roles),
            self._tensor(each.head_length for each in encoded),
            memory,
            room,
        )
        self._last = hidden[ctx_cu[1:] - 1]  # [m, d] what each context's next token follows from

    @property
    def readings(self) -> dict[int, Reading]:
        """What each router layer reads, by layer."""
        return self._cache.memory

    def best_tokens(self) -> list[int]:
        """[m] the most likely next token of each context."""
        # The embedding may be padded beyond the tokenizer's vocabulary.
        logits = self._model.logits(self._last)[:, : self._tokenizer.vocab_size]
        return logits.argmax(1).tolist()

    def feed(self, tokens: Sequence[Sequence[int]]) -> None:
        """More tokens of each context; none for those that wait or have ended."""
        q_cu = self._cumulative(map(len, tokens))
        packed = self._tensor(token for each in tokens for token in each)
        hidden = self._model.extend(packed, q_cu, self._cache)
        fed = q_cu.diff() > 0
        self._last[fed] = hidden[q_cu[1:][fed] - 1]

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        return self._tokenizer.encode_pieces(pieces).tokens

    def stretch(self) -> Stretch:
        return Stretch(self._tokenizer)

    def _positions(self, encoded: Encoded) -> Tensor:
        top_k = self._model.config.router.top_k
        return context_positions(len(encoded.tokens), encoded.head_length, top_k)

    def _tensor(self, values: Iterable) -> Tensor:
        return torch.tensor(list(values), device=self._device)

    def _cumulative(self, lengths: Iterable[int]) -> Tensor:
        return F.pad(self._tensor(lengths).cumsum(0), (1, 0))
