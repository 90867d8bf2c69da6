"""Many contexts through the model at once: packed prefill, then one token of each per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data_pipeline.schema import Piece
from data_pipeline.tokenizer import TokenizedPieces, Tokenizer
from msa_train.memory.engine.sampling import Draw, choose_tokens
from msa_train.model.batch import context_positions
from msa_train.model.cuda_graphs import DecodeGraphs
from msa_train.model.decoder import Memory, MSADecoder
from msa_train.model.kv_cache import KVCache, Prefill
from msa_train.model.transfer import pinned, sent, uploaded

_FIRST_TOKENS = 512  # a row has room for so many own tokens at first, where memory may grow


def prefill_pieces(
    model: MSADecoder, tokenizer: Tokenizer, memory: Memory, contexts: Sequence[Sequence[Piece]]
) -> Prefill:
    """As prefill_encoded, of contexts given as pieces."""
    encoded = [tokenizer.encode_pieces(pieces) for pieces in contexts]
    return prefill_encoded(model, memory, encoded)


@torch.inference_mode()
def prefill_encoded(
    model: MSADecoder, memory: Memory, contexts: Sequence[TokenizedPieces]
) -> Prefill:
    """Prefills contexts of one memory, packed: routing them is one search per router layer."""
    device, router = model.device, model.config.router
    positions = [context_positions(len(c.tokens), c.head_length, router.top_k) for c in contexts]
    tokens, cu, placed, routes, heads = uploaded(
        [
            [token for each in contexts for token in each.tokens],
            np.cumsum([0, *(len(each.tokens) for each in contexts)]),
            torch.cat(positions).numpy(),
            [role.routes(router.frame_routes) for each in contexts for role in each.roles],
            [each.head_length for each in contexts],
        ],
        device,
    )
    return model.prefill(tokens, cu, placed, routes.bool(), heads, memory)


class ModelRunner:
    """Runs the model on prefilled contexts that grow token by token, one per row of a KV cache.

    They may come from different memories and have any length up to `limit` tokens; each grows at
    its own pace. preallocate: take all memory at once (a server), else as it is needed. chunks:
    that a context reads, there is room for from the start.
    """

    def __init__(
        self, model: MSADecoder, rows: int, limit: int, preallocate: bool = True, chunks: int = 0
    ):
        weight = model.model.embed_tokens.weight
        with torch.inference_mode():
            first = limit if preallocate else _FIRST_TOKENS
            self._cache = KVCache(model.config, rows, limit, weight, first, chunks)
            # Hidden states [rows, d] after the last token.
            self.last = weight.new_zeros(rows, model.config.hidden)
        self._model = model
        self._graphs = DecodeGraphs(model, self._cache) if weight.is_cuda else None
        self.count = 0  # contexts; they are in rows 0..count-1

    @property
    def cache_bytes(self) -> int:
        """Bytes that the KV cache takes."""
        return self._cache.nbytes

    def capture(self) -> int:
        """Captures the steps of a GPU before somebody waits for one; how many (none on a CPU)."""
        return self._graphs.capture_all() if self._graphs is not None else 0

    @property
    def free(self) -> int:
        return self._cache.rows - self.count

    def room(self, row: int) -> int:
        """Tokens that can still be fed to a row."""
        return self._cache.room(row)

    @torch.inference_mode()
    def admit(self, prefill: Prefill, contexts: Sequence[int]) -> None:
        """Puts contexts of a prefill into the next free rows, in order."""
        if contexts:
            rows = range(self.count, self.count + len(contexts))
            self._cache.admit(prefill, contexts, rows)
            [chosen] = uploaded([contexts], self.last.device)
            self.last[rows.start : rows.stop] = prefill.last[chosen]
            self.count = rows.stop

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Ends a context; the last one moves to its row."""
        self.count -= 1
        if row != self.count:
            self._cache.move(self.count, row)
            self.last[row] = self.last[self.count]
        else:
            self._cache.release(row)

    @torch.inference_mode()
    def choose(self, draws: Sequence[Draw | None], vocabulary: int) -> list[int]:
        """The next token of each context (an embedding may have padding beyond the vocabulary)."""
        logits = self._model.logits(self.last[: self.count])[:, :vocabulary]
        return choose_tokens(logits, draws)

    @torch.inference_mode()
    def feed(self, tokens: Sequence[Sequence[int]]) -> None:
        """More tokens of each context: usually one, several where text was appended, or none."""
        single = [len(each) == 1 for each in tokens]
        if any(single):
            self._decode(
                [each[0] if one else 0 for each, one in zip(tokens, single, strict=True)], single
            )
        several = [row for row, each in enumerate(tokens) if len(each) > 1]
        if several:
            counts = [len(tokens[row]) for row in several]
            packed, rows, ends = uploaded(
                [[token for row in several for token in tokens[row]], several, np.cumsum(counts)],
                self.last.device,
            )
            hidden = self._model.extend(packed, several, counts, self._cache)
            self.last.index_copy_(0, rows, hidden[ends - 1])

    def _decode(self, tokens: list[int], fed: list[bool]) -> None:
        window, count = self._cache.begin_step(fed), len(fed)
        given = torch.tensor(tokens)
        if self._graphs is not None:
            hidden = self._graphs.decode(pinned(given, self.last.device), window)
        else:
            hidden = self._model.decode(sent(given, self.last.device), self._cache, window)
        if all(fed):
            self.last[:count] = hidden
        else:
            stays = self._cache.active[:count, None] == 0
            self.last[:count] = torch.where(stays, self.last[:count], hidden)
