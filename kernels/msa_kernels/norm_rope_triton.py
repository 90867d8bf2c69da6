"""Query and key heads normalised and rotated in one pass, forward and backward.

One program per (tile of tokens, head); query heads come first. The two halves of a head are read as
two tiles, because the rotation mixes them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import launcher

ROWS = 32  # tokens of a tile


@triton.jit
def _read(x, row, head, heads, half, place, mask):
    """Both halves [ROWS, HALF] of a head of x [N, heads, 2 * half], in float32."""
    at = x + (row[:, None] * heads + head) * (2 * half) + place[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return first, tl.load(at + half, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(x, row, head, heads, half, place, mask, first, second):
    at = x + (row[:, None] * heads + head) * (2 * half) + place[None, :]
    tl.store(at, first.to(x.dtype.element_ty), mask=mask)
    tl.store(at + half, second.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def norm_rope_forward(
    q, k, q_weight, k_weight, cos, sin, q_out, k_out, tokens, q_heads, k_heads, half, eps,
    ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    x, weight, out, heads = q, q_weight, q_out, q_heads
    if head >= q_heads:
        x, weight, out, heads = k, k_weight, k_out, k_heads
        head = head - q_heads
    place = tl.arange(0, HALF)
    mask = (row < tokens)[:, None] & (place < half)[None, :]
    a, b = _read(x, row, head, heads, half, place, mask)
    wa = tl.load(weight + place, mask=place < half, other=0.0).to(tl.float32)
    wb = tl.load(weight + half + place, mask=place < half, other=0.0).to(tl.float32)
    length = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half) + eps)
    a, b = a * length[:, None] * wa[None, :], b * length[:, None] * wb[None, :]
    table = row[:, None] * half + place[None, :]
    c, s = tl.load(cos + table, mask=mask, other=0.0), tl.load(sin + table, mask=mask, other=0.0)
    _write(out, row, head, heads, half, place, mask, a * c - b * s, b * c + a * s)


@triton.jit(do_not_specialize=["tokens"])
def norm_rope_backward(
    q, k, q_weight, k_weight, cos, sin, q_grad, k_grad, dq, dk, d_weights,
    tokens, q_heads, k_heads, half, eps, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    tile, slot = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = tile * ROWS + tl.arange(0, ROWS), slot
    x, weight, grad, dx, heads = q, q_weight, q_grad, dq, q_heads
    if slot >= q_heads:
        x, weight, grad, dx, heads = k, k_weight, k_grad, dk, k_heads
        head = slot - q_heads
    place = tl.arange(0, HALF)
    mask = (row < tokens)[:, None] & (place < half)[None, :]
    a, b = _read(x, row, head, heads, half, place, mask)
    ga, gb = _read(grad, row, head, heads, half, place, mask)
    table = row[:, None] * half + place[None, :]
    c, s = tl.load(cos + table, mask=mask, other=0.0), tl.load(sin + table, mask=mask, other=0.0)
    ga, gb = ga * c + gb * s, gb * c - ga * s  # rotated back
    wa = tl.load(weight + place, mask=place < half, other=0.0).to(tl.float32)
    wb = tl.load(weight + half + place, mask=place < half, other=0.0).to(tl.float32)
    length = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half) + eps)[:, None]
    # Sums over a program's tokens alone; the programs' sums are added up in order afterwards.
    sums = d_weights + (tile * (q_heads + k_heads) + slot) * (2 * half) + place
    tl.store(sums, tl.sum(ga * a * length, 0), mask=place < half)
    tl.store(sums + half, tl.sum(gb * b * length, 0), mask=place < half)
    ga, gb = ga * wa[None, :], gb * wb[None, :]
    along = (tl.sum(ga * a, 1) + tl.sum(gb * b, 1))[:, None]
    along = along * length * length * length / (2 * half)
    da, db = ga * length - a * along, gb * length - b * along
    _write(dx, row, head, heads, half, place, mask, da, db)


@launcher
def forward(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    if q.numel():
        grid, half, options = _launch(q, k)
        norm_rope_forward[grid](
            q, k, q_weight, k_weight, cos, sin, q_out, k_out, len(q), q.shape[1], k.shape[1], half,
            eps, **options,
        )  # fmt: skip
    return q_out, k_out


@launcher
def backward(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor,
    cos: Tensor, sin: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and the two weights."""
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    grid, half, options = _launch(q, k)
    sums = torch.zeros(*grid, 2 * half, dtype=torch.float32, device=q.device)
    if q.numel():
        norm_rope_backward[grid](
            q, k, q_weight, k_weight, cos, sin, q_grad, k_grad, dq, dk, sums,
            len(q), q.shape[1], k.shape[1], half, eps, **options,
        )  # fmt: skip
    of_heads = sums.sum(0)
    d_weights = (part.sum(0) for part in of_heads.split([q.shape[1], k.shape[1]]))
    d_q, d_k = (d.to(w.dtype) for d, w in zip(d_weights, (q_weight, k_weight), strict=True))
    return dq, dk, d_q, d_k


def _launch(q: Tensor, k: Tensor) -> tuple[tuple[int, int], int, dict[str, int]]:
    half = q.shape[2] // 2
    grid = (triton.cdiv(len(q), ROWS), q.shape[1] + k.shape[1])
    return grid, half, {"ROWS": ROWS, "HALF": triton.next_power_of_2(half)}
