"""Timing in turns, memory beside arguments and results, and what the device could do at best."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_FLOOR_BYTES = 1 << 28  # of the tensor that is read: more than any cache holds
_FLOOR_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices that are multiplied


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def time_in_turns(
    sides: dict[str, Callable[[], object]],
    repeats: int,
    typical: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Typical milliseconds of each side; every round runs each side once, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: typical(values) for name, values in times.items()}


def peak_memory_mb(run: Callable[[], object]) -> float:
    """Largest sum of tensor memory alive at once while `run` runs, in MiB.

    On the CPU from the allocator's own records, so that temporaries inside torch's operations
    count; on CUDA from its statistics. Memory alive before the call does not count.
    """
    run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        run()
    events = records.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak / (1 << 20)


@dataclass(frozen=True)
class Floor:
    """What this device reaches: bytes per ms of a plain read, FLOPs per ms of a plain GEMM."""

    bytes_per_ms: float
    flops_per_ms: float

    @classmethod
    @functools.cache
    def measured(cls, dtype: torch.dtype) -> Floor:
        """Of large tensors, products in `dtype`; the best of nine runs each."""
        where = device()
        flat = torch.ones(_FLOOR_BYTES // 4, device=where)
        side = _FLOOR_SIDE[where.type]
        a, b = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))
        times = time_in_turns({"read": flat.sum, "gemm": lambda: a @ b}, 9, min)
        return cls(_FLOOR_BYTES / times["read"], 2 * side**3 / times["gemm"])

    @classmethod
    def of(cls, dtype: torch.dtype) -> Floor:
        """For tensors of a dtype: products of 8 bits are as fast as bfloat16's (or faster); the
        torch paths compute in float32."""
        if device().type == "cpu":
            return cls.measured(torch.float32)
        return cls.measured(dtype if dtype.itemsize > 1 else torch.bfloat16)

    def ms(self, size: float, flops: float) -> float:
        """No less than this, for `size` bytes moved and `flops`."""
        return max(size / self.bytes_per_ms, flops / self.flops_per_ms)


def size(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
