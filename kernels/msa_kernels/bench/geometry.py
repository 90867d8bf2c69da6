"""Sizes of the published 4B model, and the ragged shapes that benchmarks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels.bench.measure import device
from msa_kernels.ragged import cumulative

HEADS, KV_HEADS, HEAD_DIM, CHUNK = 32, 8, 128, 64
WIDTH = KV_HEADS * HEAD_DIM
SCALE = HEAD_DIM**-0.5


def draw(*shape: int, dtype: torch.dtype = torch.float32, learns: bool = False) -> Tensor:
    return torch.randn(*shape, device=device(), dtype=dtype, requires_grad=learns)


def unit_heads(rows: int, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rows, heads, D] of unit vectors, drawn in slices so that 100M tokens fit."""
    out = torch.empty(rows, heads, HEAD_DIM, device=device(), dtype=dtype)
    for part in out.split(1 << 17):
        part.copy_(F.normalize(draw(*part.shape), dim=-1))
    return out


def every(count: int, length: int) -> Tensor:
    """Cumulative lengths of `count` sequences of equal length."""
    return cumulative(torch.full((count,), length, device=device()))


def one_to_three(chunks: int) -> Tensor:
    """Documents of one to three chunks, `chunks` in all: [n+1]."""
    cu = cumulative(torch.randint(1, 4, (chunks // 2 + 1,), device=device()))
    return torch.cat([cu[cu < chunks], cu.new_tensor([chunks])])
