"""Copies between the host and a device that nobody waits for.

A copy from ordinary memory makes the host wait for everything that the device still has to do.
From pinned memory it takes its place in the device's queue, and the host goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Form = tuple[torch.Size, torch.dtype]

_ALIGNED = 16  # bytes: where a tensor may begin in a block of several


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU where `device` can read it beside the host's work; on a CPU, x."""
    return x.pin_memory() if device.type == "cuda" else x


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, in the order of its current stream."""
    return pinned(x, device).to(device, non_blocking=True)


def uploaded(arrays: Sequence[ArrayLike], device: torch.device) -> list[Tensor]:
    """Arrays of whole numbers [n] as int64 tensors on `device`, by one copy."""
    given = [np.asarray(each, np.int64) for each in arrays]
    joined = sent(torch.from_numpy(np.concatenate(given)), device)
    return list(joined.split([len(each) for each in given]))


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of any shapes and dtypes on `device`; from the CPU to a GPU by one copy."""
    if device.type != "cuda" or any(x.device.type != "cpu" for x in tensors):
        return [x.to(device) for x in tensors]
    forms = [(x.shape, x.dtype) for x in tensors]
    block = block_of(forms, pin_memory=True)
    for place, x in zip(views(block, forms), tensors, strict=True):
        place.copy_(x)
    return views(block.to(device, non_blocking=True), forms)


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


class Download:
    """Tensors of a device on their way to the host, in the dtype that is wanted there. The host may
    give the device more to do before it waits for them."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype):
        self._shapes = [x.shape for x in tensors]
        device = tensors[0].device
        if device.type != "cuda":
            self._there, self._copied = [x.to("cpu", dtype) for x in tensors], None
            return
        joined = torch.cat([x.to(dtype).flatten() for x in tensors])
        self._block = torch.empty(joined.shape, dtype=dtype, pin_memory=True)
        self._block.copy_(joined, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(device))

    def result(self) -> list[Tensor]:
        """Waits for these alone."""
        if self._copied is not None:
            self._copied.synchronize()
            # Out of pinned memory, which the next ones take over.
            parts = self._block.clone().split([shape.numel() for shape in self._shapes])
            self._there = [x.view(n) for x, n in zip(parts, self._shapes, strict=True)]
        return self._there
