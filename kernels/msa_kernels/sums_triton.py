"""Sums of gradients: rows of one tensor, weighted, added up where entries name the rows of another.

Scores and attention sum their gradients so, without atomics: every row gathers the entries that
name it. Chunks occur in any context: entries are sorted by chunk, and a program takes each run of
equal ones. Rows of queries belong to one context: they are a matrix product of "entry names row"
and what the entries bring.

Row numbers and their products with widths are 64-bit: 100M tokens times 1,024 values pass 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import launcher

SUM_VALUES = 128  # of a row that a program of a sum adds up
SUM_ROWS, SUM_ENTRIES = 32, 32  # a tile of the product of rows and entries


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
            present = target >= 0  # one that takes no part names no source, and 0 times junk is NaN
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


@launcher
def sum_into_chunks(
    source: Tensor,
    rows: Tensor,
    weights: Tensor | None,
    chunks: tuple[Tensor, Tensor],
    like: Tensor,
) -> Tensor:
    """Like `like` [C, V]: weights[i] * source[rows[i]] added to chunks[i], in float32.

    source [N, V]; rows, weights [E]; chunks: of E entries, sorted stably, and their order; a chunk
    of -1 takes no part. Attention sums the gradients of selected chunks with it.
    """
    out = torch.zeros_like(like)
    if len(rows) and out.numel():
        target, order = chunks
        grid = (len(rows), triton.cdiv(source.shape[1], SUM_VALUES))
        sum_runs[grid](
            source, rows, weights, order, target, out, len(rows), source.shape[1],
            WEIGHTED=weights is not None, V=SUM_VALUES,
        )  # fmt: skip
    return out


@launcher
def sum_into_rows(
    source: Tensor,
    chunks: Tensor,
    weights: Tensor,
    rows: Tensor,
    span: tuple[Tensor, Tensor],
    query_cu: Tensor,
    like: Tensor,
) -> Tensor:
    """Like `like` [N, V]: weights[i] * source[chunks[i]] added to rows[i], in float32.

    span: first entry and end [m] of each context's entries, which name rows of that context alone;
    a row of -1 takes no part.
    """
    out = torch.zeros_like(like)
    if len(rows) and out.numel():
        contexts, width = len(query_cu) - 1, source.shape[1]
        grid = (contexts * triton.cdiv(len(like), SUM_ROWS), triton.cdiv(width, SUM_VALUES))
        sum_hits[grid](
            source, rows, chunks, weights, *span, query_cu, out, contexts, width, SUM_ROWS,
            SUM_ENTRIES, SUM_VALUES,
        )  # fmt: skip
    return out
