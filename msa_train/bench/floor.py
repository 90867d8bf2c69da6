"""What nothing can beat here: reading all bytes once, multiplying everything once."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msa_train.bench.runner import in_turns
from msa_train.model.config import ModelConfig
from msa_train.model.weights import weight_shapes

# Of the tensor that is read: more than any cache holds, and long enough to start up in.
_FLOOR_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
_FLOOR_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices that are multiplied
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def set_floor_sizes(size: int, side: int) -> None:
    """Floors of this process are measured by so many bytes, and matrices of this side: of toys."""
    for where in _FLOOR_BYTES:
        _FLOOR_BYTES[where], _FLOOR_SIDE[where] = size, side


@dataclass(frozen=True)
class Floor:
    """What this device reaches: bytes per ms of a plain read, FLOPs per ms of a plain GEMM."""

    bytes_per_ms: float
    flops_per_ms: float

    @classmethod
    @functools.cache
    def measured(cls, dtype: torch.dtype) -> Floor:
        """Of large tensors, products in `dtype`; the best of nine runs each."""
        where = "cuda" if torch.cuda.is_available() else "cpu"
        size, side = _FLOOR_BYTES[where], _FLOOR_SIDE[where]
        flat = torch.ones(size // 4, device=where)
        a, b = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))
        times = in_turns({"read": read_all([flat]), "gemm": lambda: a @ b}, 9)
        return cls(size / min(times["read"]), 2 * side**3 / min(times["gemm"]))

    @classmethod
    def of(cls, dtype: torch.dtype) -> Floor:
        """For tensors of a dtype: products of 8 bits are as fast as bfloat16's (or faster); the
        torch paths compute in float32."""
        if not torch.cuda.is_available():
            return cls.measured(torch.float32)
        return cls.measured(dtype if dtype.itemsize > 1 else torch.bfloat16)

    def ms(self, size: float, flops: float) -> float:
        """No less than this, for `size` bytes moved and `flops`."""
        return max(size / self.bytes_per_ms, flops / self.flops_per_ms)


def read_all(keys: Sequence[Tensor]) -> Callable[[], Any]:
    """Reads every byte of some tensors, as 64-bit words, whose sum is quickest."""
    words = [_as_words(x) for x in keys if x.numel()]
    return lambda: [x.sum() for x in words]


def multiply(
    keys: Sequence[Tensor], query: Tensor, wide: Tensor | None = None
) -> Callable[[], Any]:
    """One plain float32 product [C, V] x [V, T] of the sizes of `keys`, into memory that is there.
    The numbers do not matter: rows of `wide` (None: as many random ones as keys) stand for all."""
    chunks = sum(len(x) for x in keys)
    if wide is None:
        wide = torch.empty(chunks, query.shape[1], device=query.device).normal_()
    rows = len(wide)
    out, turned = wide.new_empty(rows, len(query)), query.float().T.contiguous()

    def run() -> None:
        for start in range(0, chunks, rows):
            n = min(rows, chunks - start)
            torch.mm(wide[:n], turned, out=out[:n])

    return run


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


def encode_flops(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Multiplications and additions that documents of so many tokens cost at least.

    Every matrix of the layers below the last router layer once per token, and causal attention
    there. What is left out is small: that layer's own projections, one router key per chunk, norms,
    rotation and pooling.
    """
    layers = config.last_router_layer
    below = tuple(f"model.layers.{number}." for number in range(layers))
    shapes = [
        shape
        for name, shape in weight_shapes(config).items()
        if name.startswith(below) and ".router_" not in name
    ]
    per_token = 2 * sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    return per_token * sum(lengths) + 4 * config.heads * config.head_dim * pairs * layers


def _as_words(keys: Tensor) -> Tensor:
    flat = keys.flatten().view(torch.uint8)
    if flat.numel() % 8 == 0 and flat.data_ptr() % 8 == 0:
        return flat.view(torch.int64)
    return flat.view(_WORDS[keys.element_size()])
