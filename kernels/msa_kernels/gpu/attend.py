"""Context attention, forward: selected pooled chunks are read where they lie, then own tokens.

One program per (tile of query rows of one context, query head), a running softmax in float32; for
the backward pass the logarithm of each row's sum is kept. Without entries this is the causal
attention of packed sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.gpu.launch import attend_tiles
from msa_kernels.ragged import cumulative


@triton.jit
def scores_of_entries(
    q, row, tile_begin, entry, present, memory_from, chunk, group, kv_heads, head_dim, pooled,
    bias, scale, BIAS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """(logits [M, N] of selected chunks, -inf where hidden, keys [D, N])."""
    column = tl.arange(0, D)
    k = tl.load(
        pooled + (chunk[None, :] * kv_heads + group) * head_dim + column[:, None],
        mask=present[None, :] & (column < head_dim)[:, None], other=0.0,
    )  # fmt: skip
    logits = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
    if BIAS:
        logits += tl.load(bias + entry, mask=present, other=0.0).to(tl.float32)[None, :]
    seen = present[None, :] & (row - tile_begin >= memory_from)[:, None]
    return tl.where(seen, logits, float("-inf")), k


@triton.jit
def scores_of_tokens(
    q, row, q_end, token, k_end, group, kv_heads, head_dim, keys, scale, D: tl.constexpr
):
    """(logits [M, N] of the context's own tokens, -inf where later or absent, keys [D, N])."""
    column = tl.arange(0, D)
    present = token < k_end
    k = tl.load(
        keys + (token[None, :] * kv_heads + group) * head_dim + column[:, None],
        mask=present[None, :] & (column < head_dim)[:, None], other=0.0,
    )  # fmt: skip
    logits = tl.dot(q, k, input_precision="ieee") * scale
    # Query rows are the last tokens of their context: counted from the end, row sees token.
    seen = present[None, :] & ((q_end - row)[:, None] <= (k_end - token)[None, :])
    return tl.where(seen, logits, float("-inf")), k


@triton.jit
def load_rows(x, row, present, head, heads, head_dim, D: tl.constexpr):
    """[rows, D] of one head of x [N, heads, head_dim]."""
    column = tl.arange(0, D)
    at = (row[:, None] * heads + head) * head_dim + column[None, :]
    return tl.load(x + at, mask=present[:, None] & (column < head_dim)[None, :], other=0.0)


@triton.jit
def store_rows(x, row, present, head, heads, head_dim, value, D: tl.constexpr):
    column = tl.arange(0, D)
    at = (row[:, None] * heads + head) * head_dim + column[None, :]
    mask = present[:, None] & (column < head_dim)[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def read_entries(
    q, row, tile_begin, first, last, memory_from, group, kv_heads, head_dim, index, pooled_k,
    pooled_v, bias, scale, BIAS: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """(logits [M, N], keys [D, N], values [N, D]) of a context's entries from `first` on."""
    entry = (first + tl.arange(0, N)).to(tl.int64)
    present = entry < last
    chunk = tl.load(index + entry, mask=present, other=0)
    logits, keys = scores_of_entries(
        q, row, tile_begin, entry, present, memory_from, chunk, group, kv_heads, head_dim,
        pooled_k, bias, scale, BIAS, D,
    )  # fmt: skip
    values = load_rows(pooled_v, chunk, present, group, kv_heads, head_dim, D)
    return logits, keys.to(q.dtype), values.to(q.dtype)


@triton.jit
def read_tokens(
    q, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale,
    D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """(logits [M, N], keys [D, N], values [N, D]) of a context's own tokens from `first` on."""
    token = (first + tl.arange(0, N)).to(tl.int64)
    logits, keys = scores_of_tokens(
        q, row, q_end, token, k_end, group, kv_heads, head_dim, k, scale, D
    )
    return logits, keys, load_rows(v, token, token < k_end, group, kv_heads, head_dim, D)


@triton.jit
def _fold(logits, values, best, total, out):
    """The running softmax with another tile of logits [M, N] and values [N, D]."""
    new = tl.maximum(best, tl.max(logits, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp(logits - safe[:, None])
    keep = tl.exp(best - safe)
    total = total * keep + tl.sum(weights, 1)
    out = out * keep[:, None]
    out += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new, total, out


@triton.jit(do_not_specialize=["contexts"])
def attend_forward(
    q, k, v, pooled_k, pooled_v, index, bias, memory_from, q_cu, k_cu, index_cu,
    tile_context, tile_row, out, lse, contexts, heads, kv_heads, head_dim, scale,
    BIAS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    context = tl.load(tile_context + tl.program_id(0))
    if context < contexts:
        head = tl.program_id(1)
        group = head // (heads // kv_heads)
        q_begin, q_end = tl.load(q_cu + context), tl.load(q_cu + context + 1)
        row = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, M)
        real = row < q_end
        tile = load_rows(q, row, real, head, heads, head_dim, D)
        best = tl.full([M], float("-inf"), dtype=tl.float32)
        total = tl.zeros([M], dtype=tl.float32)
        sums = tl.zeros([M, D], dtype=tl.float32)
        hidden = tl.load(memory_from + context)
        last = tl.load(index_cu + context + 1)
        for first in range(tl.load(index_cu + context), last, N):
            logits, _, values = read_entries(
                tile, row, q_begin, first, last, hidden, group, kv_heads, head_dim, index,
                pooled_k, pooled_v, bias, scale, BIAS, D, N,
            )  # fmt: skip
            best, total, sums = _fold(logits, values, best, total, sums)
        k_begin, k_end = tl.load(k_cu + context), tl.load(k_cu + context + 1)
        stop = tl.minimum(k_end, k_end - q_end + tl.load(tile_row + tl.program_id(0)) + M)
        for first in range(k_begin, stop, N):
            logits, _, values = read_tokens(
                tile, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale, D, N
            )
            best, total, sums = _fold(logits, values, best, total, sums)
        store_rows(out, row, real, head, heads, head_dim, sums / total[:, None], D)
        tl.store(lse + row * heads + head, best + tl.log(total), mask=real)


@dataclass(frozen=True)
class Tiles:
    """Tiles of ragged sequences; as many as there could be: context m marks those too many."""

    context: Tensor
    row: Tensor

    @classmethod
    def of(cls, cu: Tensor, size: int, rows: int) -> Tiles:
        """cu [m+1] of `rows` rows in tiles of `size`; known without waiting for the device."""
        bound = rows // size + len(cu) - 1
        tile_cu = cumulative((cu.diff() + size - 1) // size)
        tile = torch.arange(bound, device=cu.device)
        context = torch.searchsorted(tile_cu[1:], tile, right=True)
        own = context.clamp(max=len(cu) - 2)
        return cls(context, cu[own] + (tile - tile_cu[own]) * size)


def forward(
    q: Tensor, k: Tensor, v: Tensor, pooled_k: Tensor, pooled_v: Tensor, index: Tensor,
    bias: Tensor | None, memory_from: Tensor, cus: tuple[Tensor, Tensor, Tensor], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(attended states [Nq, H, D], logarithms of the softmax sums [Nq, H] float32)."""
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    width = padded_width(q)
    options = attend_tiles("attend", q, width)
    if q.numel():
        grid = Tiles.of(cus[0], options["M"], len(q))
        attend_forward[(len(grid.row), q.shape[1])](
            q, k, v, pooled_k, pooled_v, index, bias, memory_from, *cus, grid.context, grid.row,
            out, lse, len(cus[0]) - 1, q.shape[1], k.shape[1], q.shape[2], scale,
            BIAS=bias is not None, D=width, **options,
        )  # fmt: skip
    return out, lse


def padded_width(q: Tensor) -> int:
    return max(16, triton.next_power_of_2(q.shape[2]))
