"""Benchmarks: one registry, ours and its baselines in one run, rows as plain dictionaries.

What is compared is timed in turns, and medians are reported: other work on the machine then slows
both sides. Floors come from a plain read and a plain GEMM measured in the same run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module

from msa_kernels.errors import KernelError

_SUITES = ("routing", "states", "attention")


def names() -> tuple[str, ...]:
    """The suites that run() knows."""
    return _SUITES


def run(suites: Iterable[str] = _SUITES, repeats: int = 7) -> list[dict]:
    """Rows {"name", "pass", "device", "dtype", "shape", "ours_ms", "baseline", "baseline_ms",
    "ratio", "moved_mb", "gflop", "floor_ms", "percent_of_floor", "scratch_mb", ...}; repeats: timed
    runs of each side.

    Raises KernelError for an unknown suite.
    """
    # Both sides on large pages: else faults of fresh small ones are what a CPU is measured by.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from msa_kernels.bench.cases import rows
    from msa_kernels.bench.measure import Floor

    torch.manual_seed(0)
    found: list[dict] = []
    for suite in suites:
        if suite not in _SUITES:
            raise KernelError(f"benchmark {suite!r} is unknown; there are {', '.join(_SUITES)}")
        for case in import_module(f"msa_kernels.bench.{suite}").cases():
            found += rows(case, Floor.of(case.dtype), repeats)
    return found
