"""A batch as transformers has it, padded, and as the decoder has it, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from msa_kernels import cumulative
from torch import Tensor

from msa_train.errors import ConfigError


@dataclass(frozen=True)
class PackedRows:
    """Rows of input_ids without their padding.

    there [batch, columns] bool; tokens [N]; counts: of each row; positions [N], None where they
    were not given.
    """

    there: Tensor
    tokens: Tensor
    counts: list[int]
    positions: Tensor | None

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Self:
        """ids, positions [batch, columns]; mask: zeros are padding, its last columns are those of
        ids. Raises ConfigError for other shapes."""
        if ids.dim() != 2:
            raise ConfigError(f"input_ids have shape {list(ids.shape)}: give [batch, columns]")
        there = torch.ones_like(ids, dtype=torch.bool)
        if mask is not None:
            if mask.dim() != 2 or len(mask) != len(ids) or mask.shape[1] < ids.shape[1]:
                raise ConfigError(
                    f"attention_mask has shape {list(mask.shape)} with input_ids "
                    f"{list(ids.shape)}: give ones and zeros, [batch, columns]"
                )
            there = mask[:, mask.shape[1] - ids.shape[1] :].to(ids.device).bool()
        if positions is not None:
            positions = positions.to(ids.device).expand_as(ids)[there]
        return cls(there, ids[there], there.sum(1).tolist(), positions)

    def cu(self) -> Tensor:
        """[batch+1] where each row's tokens begin. Raises ConfigError for a row without any."""
        if not all(self.counts):
            raise ConfigError(f"row {self.counts.index(0)} of input_ids has no token")
        return cumulative(torch.tensor(self.counts, device=self.tokens.device))

    def padded(self, states: Tensor) -> Tensor:
        """[N, d] -> [batch, columns, d], zeros where there is padding."""
        found = states.new_zeros(*self.there.shape, states.shape[1])
        found[self.there] = states
        return found
