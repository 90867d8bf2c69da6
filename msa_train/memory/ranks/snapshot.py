"""A snapshot of a bank as workers are told of it: its segments, and which documents are live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import BankManifest
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot, GenerationGoneError, open_segments


@dataclass(frozen=True)
class OpenedSegments:
    """What a rank needs of a BankSnapshot to search it; see there."""

    segments: list[Segment]
    starts: np.ndarray
    live: Tensor


def described(bank: BankSnapshot) -> dict[str, Any]:
    """What `opened` needs, as JSON; `bank.live` is sent beside it, packed."""
    return {"path": str(bank.path.absolute()), "manifest": bank.manifest.to_json()}


def opened(description: dict[str, Any], live: Tensor, known: Iterable[Segment]) -> OpenedSegments:
    """The snapshot that `described` describes, whatever the bank's newest generation is.

    known: segments that are open already. Raises GenerationGoneError where segments were removed
    since then, BankError for damage.
    """
    path, manifest = Path(description["path"]), BankManifest.from_json(description["manifest"])
    try:
        segments = open_segments(path, manifest, known)
    except BankError as error:
        newest = BankManifest.load(path).generation
        if newest == manifest.generation:
            raise
        raise GenerationGoneError(
            f"generation {manifest.generation} of {path} is gone, it has {newest} now: open the "
            "bank again"
        ) from error
    starts = np.cumsum([0, *(entry.documents for entry in manifest.segments)])
    return OpenedSegments(segments, starts, live)


def pack(bits: Tensor) -> Tensor:
    """[n] bool -> [ceil(n/8)] uint8."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy()))


def unpack(packed: Tensor, count: int) -> Tensor:
    """[count] bool."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count)).bool()
