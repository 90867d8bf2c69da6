"""Attention: selected pooled chunks are read where they lie, then the context's own tokens.

One program per (tile of query rows of one context, query head): a running softmax in float32, the
logarithm of whose sums backward needs. With no chunks: causal attention of packed sequences.

Backward: query rows, own tokens and selected entries, each written by their owner. No two programs
add to the same place: the gradient of an entry (one context reading one chunk) is written apart,
and the entries of a chunk are summed afterwards in a fixed order.

Row numbers and their products with widths are 64-bit: 100M tokens times 1,024 values pass 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import launcher
from msa_kernels.sums_triton import sum_into_chunks
from msa_kernels.tiles import attention_tiles


@triton.jit
def _logits_of_entries(
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
def _logits_of_tokens(
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
def _load_rows(x, row, present, head, heads, head_dim, D: tl.constexpr):
    """[rows, D] of one head of x [N, heads, head_dim]."""
    column = tl.arange(0, D)
    at = (row[:, None] * heads + head) * head_dim + column[None, :]
    return tl.load(x + at, mask=present[:, None] & (column < head_dim)[None, :], other=0.0)


@triton.jit
def _store_rows(x, row, present, head, heads, head_dim, value, D: tl.constexpr):
    column = tl.arange(0, D)
    at = (row[:, None] * heads + head) * head_dim + column[None, :]
    mask = present[:, None] & (column < head_dim)[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _read_entries(
    q, row, tile_begin, first, last, memory_from, group, kv_heads, head_dim, index, pooled_k,
    pooled_v, bias, scale, BIAS: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """(logits [M, N], keys [D, N], values [N, D]) of a context's entries from `first` on."""
    entry = (first + tl.arange(0, N)).to(tl.int64)
    present = entry < last
    chunk = tl.load(index + entry, mask=present, other=0)
    logits, keys = _logits_of_entries(
        q, row, tile_begin, entry, present, memory_from, chunk, group, kv_heads, head_dim,
        pooled_k, bias, scale, BIAS, D,
    )  # fmt: skip
    values = _load_rows(pooled_v, chunk, present, group, kv_heads, head_dim, D)
    return logits, keys.to(q.dtype), values.to(q.dtype)


@triton.jit
def _read_tokens(
    q, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale,
    D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """(logits [M, N], keys [D, N], values [N, D]) of a context's own tokens from `first` on."""
    token = (first + tl.arange(0, N)).to(tl.int64)
    logits, keys = _logits_of_tokens(
        q, row, q_end, token, k_end, group, kv_heads, head_dim, k, scale, D
    )
    return logits, keys, _load_rows(v, token, token < k_end, group, kv_heads, head_dim, D)


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
        tile = _load_rows(q, row, real, head, heads, head_dim, D)
        best = tl.full([M], float("-inf"), dtype=tl.float32)
        total = tl.zeros([M], dtype=tl.float32)
        sums = tl.zeros([M, D], dtype=tl.float32)
        hidden = tl.load(memory_from + context)
        last = tl.load(index_cu + context + 1)
        for first in range(tl.load(index_cu + context), last, N):
            logits, _, values = _read_entries(
                tile, row, q_begin, first, last, hidden, group, kv_heads, head_dim, index,
                pooled_k, pooled_v, bias, scale, BIAS, D, N,
            )  # fmt: skip
            best, total, sums = _fold(logits, values, best, total, sums)
        k_begin, k_end = tl.load(k_cu + context), tl.load(k_cu + context + 1)
        stop = tl.minimum(k_end, k_end - q_end + tl.load(tile_row + tl.program_id(0)) + M)
        for first in range(k_begin, stop, N):
            logits, _, values = _read_tokens(
                tile, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale, D, N
            )
            best, total, sums = _fold(logits, values, best, total, sums)
        _store_rows(out, row, real, head, heads, head_dim, sums / total[:, None], D)
        tl.store(lse + row * heads + head, best + tl.log(total), mask=real)


@triton.jit
def _read_query(q, grad, lse, delta, row, real, head, heads, head_dim, D: tl.constexpr):
    """Query states and output gradients [M, D] of rows, log sums and <gradient, output> [M].

    Rows that do not exist have a log sum of +inf, hence weights of zero.
    """
    at = row * heads + head
    norm = tl.load(lse + at, mask=real, other=float("inf"))
    own = tl.load(delta + at, mask=real, other=0.0)
    tile = _load_rows(q, row, real, head, heads, head_dim, D)
    return tile, _load_rows(grad, row, real, head, heads, head_dim, D), norm, own


@triton.jit
def _logit_gradients(logits, norm, d_out, values, own):
    """(softmax weights, recomputed, and the gradient of the logits), [M, N] in float32."""
    weights = tl.exp(logits - norm[:, None])
    d_weights = tl.dot(d_out, tl.trans(values), input_precision="ieee")
    return weights, weights * (d_weights - own[:, None])


@triton.jit(do_not_specialize=["count"])
def row_products(a, b, out, count, width, D: tl.constexpr, M: tl.constexpr):
    """<a, b> in float32 of each row of a and b [count, width]."""
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
        tile, d_out, norm, own = _read_query(
            q, grad, lse, delta, row, real, head, heads, head_dim, D
        )
        total = tl.zeros([M, D], dtype=tl.float32)
        hidden = tl.load(memory_from + context)
        last = tl.load(index_cu + context + 1)
        for first in range(tl.load(index_cu + context), last, N):
            logits, keys, values = _read_entries(
                tile, row, q_begin, first, last, hidden, group, kv_heads, head_dim, index,
                pooled_k, pooled_v, bias, scale, BIAS, D, N,
            )  # fmt: skip
            _, d_logits = _logit_gradients(logits, norm, d_out, values, own)
            total += tl.dot(d_logits.to(tile.dtype), tl.trans(keys), input_precision="ieee")
        k_begin, k_end = tl.load(k_cu + context), tl.load(k_cu + context + 1)
        stop = tl.minimum(k_end, k_end - q_end + tl.load(tile_row + tl.program_id(0)) + M)
        for first in range(k_begin, stop, N):
            logits, keys, values = _read_tokens(
                tile, row, q_end, first, k_end, group, kv_heads, head_dim, k, v, scale, D, N
            )
            _, d_logits = _logit_gradients(logits, norm, d_out, values, own)
            total += tl.dot(d_logits.to(tile.dtype), tl.trans(keys), input_precision="ieee")
        _store_rows(dq, row, real, head, heads, head_dim, total * scale, D)


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
        values = _load_rows(v, token, present, group, kv_heads, head_dim, D)
        d_keys = tl.zeros([N, D], dtype=tl.float32)
        d_values = tl.zeros([N, D], dtype=tl.float32)
        # The first row that sees the tile's first token; from the end, as in _logits_of_tokens.
        begin = tl.maximum(q_begin, q_end - k_end + tl.load(tile_row + tl.program_id(0)))
        for head in range(group * (heads // kv_heads), (group + 1) * (heads // kv_heads)):
            for first in range(begin, q_end, M):
                row = (first + tl.arange(0, M)).to(tl.int64)
                real = row < q_end
                tile, d_out, norm, own = _read_query(
                    q, grad, lse, delta, row, real, head, heads, head_dim, D
                )
                logits, _ = _logits_of_tokens(
                    tile, row, q_end, token, k_end, group, kv_heads, head_dim, k, scale, D
                )
                weights, d_logits = _logit_gradients(logits, norm, d_out, values, own)
                d_values += tl.dot(tl.trans(weights.to(tile.dtype)), d_out, input_precision="ieee")
                d_keys += tl.dot(tl.trans(d_logits.to(tile.dtype)), tile, input_precision="ieee")
        _store_rows(dk, token, present, group, kv_heads, head_dim, d_keys * scale, D)
        _store_rows(dv, token, present, group, kv_heads, head_dim, d_values, D)


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
        values = _load_rows(pooled_v, chunk, present, group, kv_heads, head_dim, D).to(
            q.dtype.element_ty
        )
        d_keys = tl.zeros([N, D], dtype=tl.float32)
        d_values = tl.zeros([N, D], dtype=tl.float32)
        d_gate = tl.zeros([N], dtype=tl.float32)
        for head in range(group * (heads // kv_heads), (group + 1) * (heads // kv_heads)):
            for first in range(tl.minimum(q_begin + hidden, q_end), q_end, M):
                row = (first + tl.arange(0, M)).to(tl.int64)
                real = row < q_end
                tile, d_out, norm, own = _read_query(
                    q, grad, lse, delta, row, real, head, heads, head_dim, D
                )
                logits, _ = _logits_of_entries(
                    tile, row, q_begin, entry, present, hidden, chunk, group, kv_heads, head_dim,
                    pooled_k, bias, scale, BIAS, D,
                )  # fmt: skip
                weights, d_logits = _logit_gradients(logits, norm, d_out, values, own)
                d_gate += tl.sum(d_logits, 0)
                d_values += tl.dot(tl.trans(weights.to(tile.dtype)), d_out, input_precision="ieee")
                d_keys += tl.dot(tl.trans(d_logits.to(tile.dtype)), tile, input_precision="ieee")
        _store_rows(dk, entry, present, group, kv_heads, head_dim, d_keys * scale, D)
        _store_rows(dv, entry, present, group, kv_heads, head_dim, d_values, D)
        if BIAS:
            tl.store(d_bias + entry * kv_heads + group, d_gate, mask=present)


PLACED = 128  # tiles of a program of the next kernel


@triton.jit(do_not_specialize=["contexts", "tiles", "size", "steps"])
def place_tiles(
    cu, context_out, row_out, contexts, tiles, size, steps, N: tl.constexpr
):  # fmt: skip
    """Context and first row of each tile. Those of context c begin at tile cu[c] // size + c, which
    needs no sum over contexts; it may leave its last one unused."""
    tile = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    context, beyond = tl.zeros([N], dtype=tl.int64), tl.zeros([N], dtype=tl.int64) + contexts
    for _ in range(steps):  # the last context whose tiles begin here or before
        middle = (context + beyond) // 2
        here = tl.load(cu + middle) // size + middle <= tile
        context, beyond = tl.where(here, middle, context), tl.where(here, beyond, middle)
    begin = tl.load(cu + context)
    row = begin + (tile - (begin // size + context)) * size
    used = row < tl.load(cu + context + 1)
    tl.store(context_out + tile, tl.where(used, context, contexts), mask=tile < tiles)
    tl.store(row_out + tile, row, mask=tile < tiles)


@launcher
def forward(
    q: Tensor, k: Tensor, v: Tensor, pooled_k: Tensor, pooled_v: Tensor, index: Tensor,
    bias: Tensor | None, memory_from: Tensor, cus: tuple[Tensor, Tensor, Tensor], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(attended states [Nq, H, D], logarithms of the softmax sums [Nq, H] float32)."""
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    width = _padded_width(q)
    options = _tile_options("attend", q, width)
    if q.numel():
        context, row = _row_tiles(cus[0], options["M"], len(q))
        attend_forward[(len(row), q.shape[1])](
            q, k, v, pooled_k, pooled_v, index, bias, memory_from, *cus, context, row,
            out, lse, len(cus[0]) - 1, q.shape[1], k.shape[1], q.shape[2], scale,
            BIAS=bias is not None, D=width, **options,
        )  # fmt: skip
    return out, lse


@launcher
def backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pooled_k: Tensor,
    pooled_v: Tensor, index: Tensor, bias: Tensor | None, memory_from: Tensor,
    cus: tuple[Tensor, Tensor, Tensor], scale: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of q, k, v, pooled_k, pooled_v and bias."""
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    contexts, padded = len(cus[0]) - 1, _padded_width(q)
    options, key_options = (
        _tile_options(kind, q, padded) for kind in ("query_gradient", "key_gradient")
    )
    sizes = (contexts, heads, kv_heads, width, scale)
    key_shape = {"D": padded, **key_options}
    delta = torch.empty_like(lse)
    given = (grad, lse, delta)
    if q.numel():
        row_products[(triton.cdiv(delta.numel(), options["M"]),)](
            grad, out, delta, delta.numel(), width, D=padded, M=options["M"]
        )
        context, row = _row_tiles(cus[0], options["M"], len(q))
        query_gradient[(len(row), heads)](
            q, k, v, pooled_k, pooled_v, index, bias, memory_from, *cus, context, row,
            *given, dq, *sizes, BIAS=bias is not None, D=padded, **options,
        )  # fmt: skip
    if k.numel():
        context, row = _row_tiles(cus[1], key_options["N"], len(k))
        token_gradient[(len(row), kv_heads)](
            q, k, v, cus[0], cus[1], context, row, *given, dk, dv, *sizes, **key_shape
        )
    ek, ev = (pooled_k.new_empty(len(index), *k.shape[1:], dtype=torch.float32) for _ in range(2))
    d_gate = lse.new_empty(len(index), kv_heads)
    if ek.numel():
        context, row = _row_tiles(cus[2], key_options["N"], len(index))
        entry_gradient[(len(row), kv_heads)](
            q, pooled_k, pooled_v, index, bias, memory_from, cus[0], cus[2], context, row,
            *given, ek, ev, d_gate, *sizes, BIAS=bias is not None, **key_shape,
        )  # fmt: skip
    own, by_chunk = torch.arange(len(index), device=index.device), tuple(index.sort(stable=True))
    d_pooled_k, d_pooled_v = (
        sum_into_chunks(x.flatten(1), own, None, by_chunk, like.flatten(1)).view_as(like)
        for x, like in ((ek, pooled_k), (ev, pooled_v))
    )
    d_bias = None if bias is None else d_gate.sum(1).to(bias.dtype)
    return dq, dk, dv, d_pooled_k, d_pooled_v, d_bias


def _row_tiles(cu: Tensor, size: int, rows: int) -> tuple[Tensor, Tensor]:
    """Context and first row of each tile of `size` rows, of `rows` in sequences by cu [m+1].

    As many tiles as there could be, so that nothing waits for the device; unused ones have context
    m.
    """
    contexts = len(cu) - 1
    tiles = rows // size + contexts
    context, row = (torch.empty(tiles, dtype=torch.int64, device=cu.device) for _ in range(2))
    place_tiles[(triton.cdiv(tiles, PLACED),)](
        cu, context, row, contexts, tiles, size, contexts.bit_length(), N=PLACED
    )
    return context, row


def _tile_options(kind: str, q: Tensor, width: int) -> dict[str, int]:
    return attention_tiles(kind, q.device, width, q.element_size())


def _padded_width(q: Tensor) -> int:
    """The power of two that holds a head, 16 at least: no product is narrower."""
    return max(16, triton.next_power_of_2(q.shape[2]))
