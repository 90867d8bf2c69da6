"""Chunk means: one program per (chunk, block of features), forward and backward.

Row numbers are 64-bit: 100M tokens times 1,024 features pass 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import launcher

BLOCK, ROWS = 128, 16  # features of a program, tokens that it reads at once


@triton.jit
def mean_forward(
    x, out, token_cu, features, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    start, end = tl.load(token_cu + chunk), tl.load(token_cu + chunk + 1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(start, end, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < end)[:, None] & inside[None, :]
        tile = tl.load(x + row[:, None] * features + column[None, :], mask=mask, other=0.0)
        total += tl.sum(tile.to(tl.float32), 0)
    mean = total / (end - start).to(tl.float32)
    tl.store(out + chunk * features + column, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def mean_backward(
    grad, dx, token_cu, features, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    start, end = tl.load(token_cu + chunk), tl.load(token_cu + chunk + 1)
    share = tl.load(grad + chunk * features + column, mask=inside, other=0.0).to(tl.float32)
    share = (share / (end - start).to(tl.float32)).to(dx.dtype.element_ty)
    for first in range(start, end, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < end)[:, None] & inside[None, :]
        tile = tl.broadcast_to(share[None, :], [ROWS, BLOCK])
        tl.store(dx + row[:, None] * features + column[None, :], tile, mask=mask)


@launcher
def chunk_mean(x: Tensor, token_cu: Tensor) -> Tensor:
    """[N, F], token_cu [C+1] -> [C, F]."""
    out = x.new_empty(len(token_cu) - 1, x.shape[1])
    if out.numel():
        mean_forward[_grid(out)](x, out, token_cu, x.shape[1], ROWS=ROWS, BLOCK=BLOCK)
    return out


@launcher
def chunk_mean_backward(grad: Tensor, token_cu: Tensor, tokens: int) -> Tensor:
    """[C, F] -> [N, F], N = tokens."""
    dx = grad.new_empty(tokens, grad.shape[1])
    if grad.numel():
        mean_backward[_grid(grad)](grad, dx, token_cu, grad.shape[1], ROWS=ROWS, BLOCK=BLOCK)
    return dx


def _grid(chunks: Tensor) -> tuple[int, int]:
    """One program per chunk and block of features, of pooled rows [C, F]."""
    return len(chunks), triton.cdiv(chunks.shape[1], BLOCK)
