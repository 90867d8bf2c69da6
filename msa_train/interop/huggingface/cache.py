"""Our KV cache where transformers expects one of its own."""

from __future__ import annotations

from typing import NoReturn

import torch
from transformers import Cache

from msa_train.errors import ConfigError
from msa_train.model.kv_cache import KVCache


class DecoderCache(Cache):
    """Keys and values of a batch, one row of `held` each, without its padding.

    columns: of input_ids so far, padding included: what transformers counts.
    """

    def __init__(self, held: KVCache, columns: int):
        super().__init__(layers=[])  # its own kind of layer is not used
        self.held, self.columns = held, columns

    def __len__(self) -> int:
        return len(self.held)

    @property
    def batch_size(self) -> int:
        return self.held.rows

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_initialized(self) -> bool:
        return True

    @property
    def is_croppable(self) -> bool:
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows as beam search chose them, [rows]."""
        self.held.reorder(beam_idx.tolist())

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise ConfigError(
            "this cache only grows and is reordered: it cannot be cut, split or written to; "
            "generate without assistant_model and prompt_lookup_num_tokens"
        )

    crop = reset = update = batch_repeat_interleave = batch_select_indices = _refused
