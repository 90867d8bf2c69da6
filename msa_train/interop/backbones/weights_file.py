"""A safetensors file written one weight at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline import files
from msa_train.errors import CheckpointError
from msa_train.interop.backbones.backbone import FORMS

_NAMES = {dtype: name for name, dtype in FORMS.items()}
_ALIGNED = 8  # bytes at which the data begins

# Published name -> dtype and shape, in the order of writing.
Planned = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_weights(path: Path, planned: Planned, weights: Iterable[tuple[str, Tensor]]) -> int:
    """Bytes of a new file that holds what is planned; of its numbers one weight is in memory.

    weights: in the order of `planned`, of its dtypes and shapes.
    """
    with files.NewFile(path) as file:
        file.write(_header(planned))
        for (name, weight), expected in zip(weights, planned, strict=True):
            assert name == expected and (weight.dtype, tuple(weight.shape)) == planned[name], name
            file.write(weight.contiguous().flatten().view(torch.uint8).numpy())
        return file.bytes


def _header(planned: Planned) -> bytes:
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in planned.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if begin % dtype.itemsize:  # readers map a weight where it lies
            raise CheckpointError(
                f"{name} ({dtype}) would begin at the odd byte {begin}: give --dtype float32"
            )
        entries[name] = {
            "dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
