"""What no search of these keys can beat here: reading them once, multiplying them once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def read_all(keys: Sequence[Tensor]) -> Callable[[], Any]:
    """Reads every byte of some tensors, as 64-bit words, whose sum is quickest."""
    words = [_as_words(x) for x in keys if x.numel()]
    return lambda: [x.sum() for x in words]


def multiply(
    keys: Sequence[Tensor], query: Tensor, at_once: int = 0, wide: Tensor | None = None
) -> Callable[[], Any]:
    """One plain float32 product [C, V] x [V, T] of the sizes of `keys`, written where memory is
    ready. What is multiplied does not matter: `wide`, or random rows (at_once of them; 0: as many
    as all keys have), stand for all."""
    chunks = sum(len(x) for x in keys)
    if wide is None:
        wide = torch.empty(min(chunks, at_once or chunks), query.shape[1]).normal_()
    rows = len(wide)
    out, turned = torch.empty(rows, len(query)), query.float().T.contiguous()

    def run() -> None:
        for start in range(0, chunks, rows):
            n = min(rows, chunks - start)
            torch.mm(wide[:n], turned, out=out[:n])

    return run


def in_turns(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every run; every round runs each side once, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def against_floor(times: dict[str, list[float]], layers: int = 1) -> dict[str, Any]:
    """Fields of a row: route is the median, as a user meets it; floors are the best of as many."""
    read, gemm = min(times["read"]) * layers, min(times["gemm"]) * layers
    route, floor = statistics.median(times["search"]), max(read, gemm)
    return {
        "route_ms": round(route, 2),
        "route_best_ms": round(min(times["search"]), 2),
        "floor_ms": round(floor, 2),
        "read_ms": round(read, 2),
        "gemm_ms": round(gemm, 2),
        "ratio": round(route / floor, 2),
    }


def _as_words(keys: Tensor) -> Tensor:
    flat = keys.flatten().view(torch.uint8)
    if flat.numel() % 8 == 0 and flat.data_ptr() % 8 == 0:
        return flat.view(torch.int64)
    return flat.view(_WORDS[keys.element_size()])
