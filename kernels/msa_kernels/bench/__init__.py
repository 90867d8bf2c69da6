"""Benchmarks: one registry, one runner, results as plain dictionaries.

`run(name)` measures on this machine with the threads torch has; `python -m msa_kernels.bench NAME
--json` prints the same as JSON alone. What is compared is timed in turns, and medians are
reported: other work on the machine then slows both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from msa_kernels.errors import KernelError

_BENCHMARKS = {
    "operations": "msa_kernels.bench.operations",
    "routing": "msa_kernels.bench.routing",
}


def names() -> list[str]:
    """The benchmarks that run() knows."""
    return sorted(_BENCHMARKS)


def run(name: str, repeats: int | None = None) -> dict:
    """Runs a benchmark and returns its results, ready for JSON.

    repeats: timed runs of each side (default: the benchmark's own). Raises KernelError for an
    unknown name.
    """
    if name not in _BENCHMARKS:
        raise KernelError(f"benchmark {name!r} is unknown; there are {', '.join(names())}")
    measure: Callable[..., dict] = import_module(_BENCHMARKS[name]).measure
    return measure() if repeats is None else measure(repeats)
