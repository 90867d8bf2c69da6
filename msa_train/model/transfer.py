"""Copies between the host and a device that nobody waits for.

A copy from ordinary memory makes the host wait for everything that the device still has to do.
From pinned memory it takes its place in the device's queue, and the host goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Downloads:
    """Tensors that leave `device` for the host, beside what the device is given to do next.

    They are copied in a stream of their own, into pinned buffers that are used again: two of them,
    where the host waits for each download when it has begun the next one. A CPU has neither.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._unused: list[Tensor] = []

    def begin(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Download:
        """Of tensors that the current stream has been given to compute, to be `dtype` there."""
        if self._stream is None:
            return Download([x.to("cpu", dtype) for x in tensors])
        joined = torch.cat([x.to(dtype).flatten() for x in tensors])
        buffer = self._buffer(joined.nbytes)
        block = buffer[: joined.nbytes].view(dtype)
        self._stream.wait_stream(torch.cuda.current_stream(joined.device))
        with torch.cuda.stream(self._stream):
            block.copy_(joined, non_blocking=True)
        joined.record_stream(self._stream)  # or what is computed next could be given its memory
        copied = self._stream.record_event()

        def arrive() -> Tensor:
            copied.synchronize()
            there = block.clone()
            self._unused.append(buffer)
            return there

        return Download([x.shape for x in tensors], arrive)

    def _buffer(self, size: int) -> Tensor:
        """[bytes] uint8, of which at least `size`."""
        while self._unused:
            if (buffer := self._unused.pop()).nbytes >= size:
                return buffer
        # As much as torch's allocator of pinned memory takes for it: few are soon outgrown.
        with torch.inference_mode(False):
            return torch.empty(1 << (size - 1).bit_length(), dtype=torch.uint8, pin_memory=True)


class Download:
    """Tensors on their way to the host, which may give the device more to do before it waits.

    given: the tensors, or, with `arrive`, the shapes of those that lie side by side in what it
    waits for and returns.
    """

    def __init__(
        self, given: list[Tensor] | list[torch.Size], arrive: Callable[[], Tensor] | None = None
    ):
        self._given, self._arrive = given, arrive

    def result(self) -> list[Tensor]:
        """Waits for these alone."""
        if self._arrive is not None:
            parts = self._arrive().split([shape.numel() for shape in self._given])
            self._given = [x.view(n) for x, n in zip(parts, self._given, strict=True)]
            self._arrive = None
        return self._given
