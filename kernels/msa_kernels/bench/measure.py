"""Timing in turns, and the memory an operation takes beside its arguments and result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def time_in_turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each side; every round runs each side once, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


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


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
