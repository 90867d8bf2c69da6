"""What an import reads: a pretrained model's geometry, weights one at a time, and tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msa_train.errors import CheckpointError

FORMS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as files name them


@dataclass(frozen=True)
class StoredWeight:
    """A weight that lies in a file, not read yet.

    shape: as published. dtype: of the numbers; of quantised ones the one that holds them exactly.
    form: how they are stored, for the report.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    form: str


class PretrainedBackbone(ABC):
    """A pretrained model on disk.

    name: what it calls itself. licence: as it says, None where it does not. config: as its
    config.json has it. stored: every weight by its published name, in the order of `weights`.
    tokenizer: its tokenizer.json. settings: of the tokenizer (tokenizer_config.json).
    chat_template: its text, None where there is none.
    """

    name: str
    licence: str | None
    config: Mapping[str, Any]
    stored: Mapping[str, StoredWeight]
    tokenizer: bytes
    settings: Mapping[str, Any]
    chat_template: str | None

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight in turn; only the one that is given is in memory."""

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError for a weight that is missing, of another shape, or not known.

        shapes: of all that the architecture has, without a router's.
        """
        missing = [name for name in shapes if name not in self.stored]
        if missing:
            raise CheckpointError(
                f"{self.name} has no weight {missing[0]} ({len(missing)} are missing): is a file "
                "of it missing?"
            )
        unknown = [name for name in self.stored if name not in shapes]
        if unknown:
            raise CheckpointError(
                f"{self.name} has {len(unknown)} weights that its architecture has not here, such "
                f"as {unknown[0]}: what they do would be left out"
            )
        for name, shape in shapes.items():
            if self.stored[name].shape != shape:
                raise CheckpointError(
                    f"{self.name} has {name} of shape {list(self.stored[name].shape)}, by its "
                    f"config.json {list(shape)}"
                )
