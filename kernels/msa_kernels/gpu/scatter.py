"""Sums over entries that name their target, without atomics: each target gathers its own.

Entries i add weight[i] * source[row[i]] to a target. Two forms: targets that occur in any context
(entries sorted by target; a program per run of equal ones), and targets that belong to one context
(its rows as one matrix product of "entry hits row" and the entries' sources).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

V = 128
ROWS, ENTRIES = 32, 32


@triton.jit(do_not_specialize=["count"])
def sum_runs(
    source, rows, weights, order, target, out, count, width,
    WEIGHTED: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * V + tl.arange(0, V)
    inside = column < width
    own = tl.load(target + place)
    before = tl.load(target + place - 1, mask=place > 0, other=-1)
    if (own >= 0) & (own != before):
        total = tl.zeros([V], dtype=tl.float32)
        same = own
        while same == own:
            entry = tl.load(order + place)
            row = tl.load(rows + entry)
            value = tl.load(source + row * width + column, mask=inside, other=0.0).to(tl.float32)
            if WEIGHTED:
                value = value * tl.load(weights + entry)
            total += value
            place += 1
            same = tl.load(target + place, mask=place < count, other=-1)
        tl.store(out + own * width + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["contexts"])
def sum_hits(
    source, targets, sources, weights, begin, end, context_cu, out, contexts, width,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    context = (tl.program_id(0) % contexts).to(tl.int64)
    start = tl.load(context_cu + context) + (tl.program_id(0) // contexts).to(tl.int64) * ROWS
    last = tl.load(context_cu + context + 1)
    if start < last:
        row = start + tl.arange(0, ROWS)
        column = tl.program_id(1) * V + tl.arange(0, V)
        inside = column < width
        total = tl.zeros([ROWS, V], dtype=tl.float32)
        stop = tl.load(end + context)
        for first in range(tl.load(begin + context), stop, ENTRIES):
            entry = (first + tl.arange(0, ENTRIES)).to(tl.int64)
            present = entry < stop
            target = tl.load(targets + entry, mask=present, other=-1)
            weight = tl.load(weights + entry, mask=present, other=0.0).to(tl.float32)
            at = tl.load(sources + entry, mask=present, other=0)
            hit = tl.where(target[None, :] == row[:, None], weight[None, :], 0.0)
            value = tl.load(
                source + at[:, None] * width + column[None, :],
                mask=present[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(hit, value.to(tl.float32), total, input_precision="ieee")
        tl.store(
            out + row[:, None] * width + column[None, :], total.to(out.dtype.element_ty),
            mask=(row < last)[:, None] & inside[None, :],
        )  # fmt: skip


def to_chunks(
    source: Tensor, rows: Tensor, weights: Tensor | None, chunks: Tensor, like: Tensor
) -> Tensor:
    """Like `like` [C, V]: weights[i] * source[rows[i]] added to chunks[i], in float32.

    source [N, V]; rows, chunks, weights [E]; a chunk of -1 takes no part.
    """
    out = torch.zeros_like(like)
    if len(rows) and out.numel():
        target, order = chunks.sort(stable=True)
        grid = (len(rows), triton.cdiv(source.shape[1], V))
        sum_runs[grid](
            source, rows, weights, order, target, out, len(rows), source.shape[1],
            WEIGHTED=weights is not None, V=V,
        )  # fmt: skip
    return out


def to_rows(
    source: Tensor,
    chunks: Tensor,
    weights: Tensor,
    rows: Tensor,
    span: tuple[Tensor, Tensor],
    query_cu: Tensor,
    like: Tensor,
) -> Tensor:
    """Like `like` [N, V]: weights[i] * source[chunks[i]] added to rows[i], which is the context's.

    span: first and last entry [m] of each context; a row of -1 takes no part.
    """
    out = torch.zeros_like(like)
    if len(rows) and out.numel():
        contexts, width = len(query_cu) - 1, source.shape[1]
        grid = (contexts * triton.cdiv(len(like), ROWS), triton.cdiv(width, V))
        sum_hits[grid](
            source, rows, chunks, weights, *span, query_cu, out, contexts, width, ROWS, ENTRIES, V
        )
    return out
