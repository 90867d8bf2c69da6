"""Several tensors in one block of bytes, which goes to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16  # bytes: where a tensor may begin in a block of several


Form = tuple[torch.Size, torch.dtype]


def block_of(forms: Sequence[Form], **options: Any) -> Tensor:
    """[bytes] uint8 with room for tensors of these shapes and dtypes; options: of torch.empty."""
    return torch.empty(_starts(forms)[-1], dtype=torch.uint8, **options)


def views(block: Tensor, forms: Sequence[Form]) -> list[Tensor]:
    """The tensors of a block, without a copy."""
    sized = zip(forms, _starts(forms), strict=False)
    return [
        block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for (shape, dtype), start in sized
    ]


def _starts(forms: Sequence[Form]) -> list[int]:
    """Where each begins, and the bytes of all."""
    sizes = (-(-shape.numel() * dtype.itemsize // _ALIGNED) * _ALIGNED for shape, dtype in forms)
    return list(accumulate(sizes, initial=0))
