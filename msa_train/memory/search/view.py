"""The view of a memory that the engine reads: states to search, numbers and texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from data_pipeline.schema import Document
from msa_train.memory.search.tiered import TieredMemory


class DocumentTexts(Protocol):
    """Texts by document number."""

    def __getitem__(self, number: int) -> Document: ...


@dataclass(frozen=True)
class MemoryView:
    """n documents as a model reads them: states to search, numbers [n] ascending, and texts.

    live [n]: which of them are there; the others were removed (None: all are).
    """

    memory: TieredMemory
    numbers: Tensor
    documents: DocumentTexts
    live: Tensor | None = None

    def restricted(self, allowed: Tensor) -> MemoryView:
        """Only the documents `allowed` [n] are searched, and known."""
        live = allowed if self.live is None else allowed & self.live
        return replace(self, memory=self.memory.restricted(allowed), live=live)

    def __len__(self) -> int:
        return len(self.numbers) if self.live is None else int(self.live.sum())

    def knows(self, number: int) -> bool:
        """Whether a document of this number is in the view."""
        place = int(torch.searchsorted(self.numbers, number))
        there = place < len(self.numbers) and int(self.numbers[place]) == number
        return there and (self.live is None or bool(self.live[place]))
