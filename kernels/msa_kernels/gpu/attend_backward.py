"""Context attention, backward: query rows, own tokens and selected entries, each by their owner.

Nothing is added up by two programs: the gradient of an entry (one context reading one chunk) is
written apart, and entries of one chunk are summed afterwards in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.gpu.attend import (
    Tiles,
    load_rows,
    padded_width,
    read_entries,
    read_tokens,
    scores_of_entries,
    scores_of_tokens,
    store_rows,
)
from msa_kernels.gpu.launch import attend_tiles
from msa_kernels.gpu.scatter import to_chunks


@triton.jit
def _read_rows(q, grad, lse, delta, row, real, head, heads, head_dim, D: tl.constexpr):
    """Of query rows: states and output gradients [M, D], log sums and <gradient, output> [M].

    Rows that do not exist have a log sum of +inf, hence weights of zero.
    """
    at = row * heads + head
    norm = tl.load(lse + at, mask=real, other=float("inf"))
    own = tl.load(delta + at, mask=real, other=0.0)
    tile = load_rows(q, row, real, head, heads, head_dim, D)
    return tile, load_rows(grad, row, real, head, heads, head_dim, D), norm, own


@triton.jit
def _of_logits(logits, norm, d_out, values, own):
    """(softmax weights again, gradient of the logits), [M, N] in float32."""
    weights = tl.exp(logits - norm[:, None])
    d_weights = tl.dot(d_out, tl.trans(values), input_precision="ieee")
    return weights, weights * (d_weights - own[:, None])


@triton.jit(do_not_specialize=["count"])
def row_products(a, b, out, count, width, D: tl.constexpr, M: tl.constexpr):
    """<a, b> in float32 of each of the rows [count, width]."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    column = tl.arange(0, D)
    mask = (row < count)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    left = tl.load(a + at, mask=mask, other=0.0).to(tl.float32)
    product = left * tl.load(b + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(product, 1), mask=row < count)


@triton.jit(do_not_specialize=["contexts"])
def query_gradient(
    q, k, v, pooled_k, pooled_v, index, bias, memory_from, q_cu, k_cu, index_cu,
    tile_context, tile_row, grad, lse, delta, dq, contexts, heads, kv_heads, head_dim, scale,
    BIAS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    context = tl.load(tile_context + tl.program_id(0))
    if context < contexts:
        head = tl.program_id(1)
        group = head // (heads // kv_heads)
        q_begin, q_end = tl.load(q_cu + context), tl.load(q_cu + context + 1)
        row = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, M)
        real = row < q_end
        tile, d_out, norm, own = _read_rows(
            q, grad, lse, delta, row, real, head, heads, head_dim, D
        )
        total = tl.zeros([M, D], dtype=tl.float32)
        hidden = tl.load(memory_from + context)
        last = tl.load(index_cu + context + 1)
        for first in range(tl.load(index_cu + context), last, N):
            logits, keys, values = read_entries(
                tile, row, q_begin, first, last, hidden, group, kv_heads, head_dim, index,
                pooled_k, pooled_v, bias, scale, BIAS, D, N,
            )  # fmt: skip
            _, d_logits = _of_logits(logits, norm, d_out, values, own)
            total += tl.dot(d_logits.to(tile.dtype), tl.trans(keys), input_precision="ieee")
        k_begin, k_end = tl.load(k_cu + context), tl.load(k_cu + context + 1)
        stop = tl.minimum(k_end, k_end - q_end + tl.load(tile_row + tl.program_id(0)) + M)
        for first in range(k_begin, stop, N):
            logits, keys, values = read_tokens(
                tile, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale, D, N
            )
            _, d_logits = _of_logits(logits, norm, d_out, values, own)
            total += tl.dot(d_logits.to(tile.dtype), tl.trans(keys), input_precision="ieee")
        store_rows(dq, row, real, head, heads, head_dim, total * scale, D)


@triton.jit(do_not_specialize=["contexts"])
def token_gradient(
    q, k, v, q_cu, k_cu, tile_context, tile_row, grad, lse, delta, dk, dv,
    contexts, heads, kv_heads, head_dim, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    context = tl.load(tile_context + tl.program_id(0))
    if context < contexts:
        group = tl.program_id(1)
        q_begin, q_end = tl.load(q_cu + context), tl.load(q_cu + context + 1)
        k_end = tl.load(k_cu + context + 1)
        token = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, N)
        present = token < k_end
        values = load_rows(v, token, present, group, kv_heads, head_dim, D)
        d_keys = tl.zeros([N, D], dtype=tl.float32)
        d_values = tl.zeros([N, D], dtype=tl.float32)
        # The first row that sees the tile's first token; counted from the end, as there.
        begin = tl.maximum(q_begin, q_end - k_end + tl.load(tile_row + tl.program_id(0)))
        for head in range(group * (heads // kv_heads), (group + 1) * (heads // kv_heads)):
            for first in range(begin, q_end, M):
                row = (first + tl.arange(0, M)).to(tl.int64)
                real = row < q_end
                tile, d_out, norm, own = _read_rows(
                    q, grad, lse, delta, row, real, head, heads, head_dim, D
                )
                logits, _ = scores_of_tokens(
                    tile, row, q_end, token, k_end, group, kv_heads, head_dim, k, scale, D
                )
                weights, d_logits = _of_logits(logits, norm, d_out, values, own)
                d_values += tl.dot(tl.trans(weights.to(tile.dtype)), d_out, input_precision="ieee")
                d_keys += tl.dot(tl.trans(d_logits.to(tile.dtype)), tile, input_precision="ieee")
        store_rows(dk, token, present, group, kv_heads, head_dim, d_keys * scale, D)
        store_rows(dv, token, present, group, kv_heads, head_dim, d_values, D)


@triton.jit(do_not_specialize=["contexts"])
def entry_gradient(
    q, pooled_k, pooled_v, index, bias, memory_from, q_cu, index_cu, tile_context, tile_entry,
    grad, lse, delta, dk, dv, d_bias, contexts, heads, kv_heads, head_dim, scale,
    BIAS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    context = tl.load(tile_context + tl.program_id(0))
    if context < contexts:
        group = tl.program_id(1)
        q_begin, q_end = tl.load(q_cu + context), tl.load(q_cu + context + 1)
        entry = tl.load(tile_entry + tl.program_id(0)) + tl.arange(0, N)
        present = entry < tl.load(index_cu + context + 1)
        chunk = tl.load(index + entry, mask=present, other=0)
        hidden = tl.load(memory_from + context)
        values = load_rows(pooled_v, chunk, present, group, kv_heads, head_dim, D).to(
            q.dtype.element_ty
        )
        d_keys = tl.zeros([N, D], dtype=tl.float32)
        d_values = tl.zeros([N, D], dtype=tl.float32)
        d_gate = tl.zeros([N], dtype=tl.float32)
        for head in range(group * (heads // kv_heads), (group + 1) * (heads // kv_heads)):
            for first in range(tl.minimum(q_begin + hidden, q_end), q_end, M):
                row = (first + tl.arange(0, M)).to(tl.int64)
                real = row < q_end
                tile, d_out, norm, own = _read_rows(
                    q, grad, lse, delta, row, real, head, heads, head_dim, D
                )
                logits, _ = scores_of_entries(
                    tile, row, q_begin, entry, present, hidden, chunk, group, kv_heads, head_dim,
                    pooled_k, bias, scale, BIAS, D,
                )  # fmt: skip
                weights, d_logits = _of_logits(logits, norm, d_out, values, own)
                d_gate += tl.sum(d_logits, 0)
                d_values += tl.dot(tl.trans(weights.to(tile.dtype)), d_out, input_precision="ieee")
                d_keys += tl.dot(tl.trans(d_logits.to(tile.dtype)), tile, input_precision="ieee")
        store_rows(dk, entry, present, group, kv_heads, head_dim, d_keys * scale, D)
        store_rows(dv, entry, present, group, kv_heads, head_dim, d_values, D)
        if BIAS:
            tl.store(d_bias + entry * kv_heads + group, d_gate, mask=present)


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pooled_k: Tensor,
    pooled_v: Tensor, index: Tensor, bias: Tensor | None, memory_from: Tensor,
    cus: tuple[Tensor, Tensor, Tensor], scale: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of q, k, v, pooled_k, pooled_v and bias."""
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    contexts, padded = len(cus[0]) - 1, padded_width(q)
    options = attend_tiles("attend_backward", q, padded)
    sizes = (contexts, heads, kv_heads, width, scale)
    shape = {"D": padded, **options}
    delta = torch.empty_like(lse)
    if q.numel():
        row_products[(triton.cdiv(delta.numel(), options["M"]),)](
            grad, out, delta, delta.numel(), width, D=padded, M=options["M"]
        )
    given = (grad, lse, delta)
    if q.numel():
        grid = Tiles.of(cus[0], options["M"], len(q))
        query_gradient[(len(grid.row), heads)](
            q, k, v, pooled_k, pooled_v, index, bias, memory_from, *cus, grid.context, grid.row,
            *given, dq, *sizes, BIAS=bias is not None, **shape,
        )  # fmt: skip
    if k.numel():
        grid = Tiles.of(cus[1], options["N"], len(k))
        token_gradient[(len(grid.row), kv_heads)](
            q, k, v, cus[0], cus[1], grid.context, grid.row, *given, dk, dv, *sizes, **shape
        )
    ek, ev = (pooled_k.new_zeros(len(index), *k.shape[1:], dtype=torch.float32) for _ in range(2))
    d_gate = lse.new_zeros(len(index), kv_heads)
    if ek.numel():
        grid = Tiles.of(cus[2], options["N"], len(index))
        entry_gradient[(len(grid.row), kv_heads)](
            q, pooled_k, pooled_v, index, bias, memory_from, cus[0], cus[2], grid.context,
            grid.row, *given, ek, ev, d_gate, *sizes, BIAS=bias is not None, **shape,
        )  # fmt: skip
    own = torch.arange(len(index), device=index.device)
    d_pooled_k, d_pooled_v = (
        to_chunks(x.flatten(1), own, None, index, like.flatten(1)).view_as(like)
        for x, like in ((ek, pooled_k), (ev, pooled_v))
    )
    d_bias = None if bias is None else d_gate.sum(1).to(bias.dtype)
    return dq, dk, dv, d_pooled_k, d_pooled_v, d_bias
