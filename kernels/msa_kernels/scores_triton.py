"""Scores: a tile of chunks against all query tokens of a context, reduced before it is written.

What leaves the registers is one number per document: its score, and the chunk and token that reach
it, packed so that the largest number is the highest score, then the first chunk, then its first
token. Maxima of such numbers do not depend on the order in which programs arrive.

The gradient of a score reaches one query row and one key row. It is summed without atomics: every
row gathers the entries that name it. Rows of keys occur in any context: entries are sorted by row,
and a program takes each run of equal ones. Rows of queries belong to one context: they are a matrix
product of "entry names row" and the entries' keys.

Row numbers and their products with widths are 64-bit: 100M tokens times 1,024 values pass 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import interpreting
from msa_kernels.errors import KernelError
from msa_kernels.tiles import tiles

NOTHING = -(1 << 63)  # a packed maximum that no chunk has reached
SUM_VALUES = 128  # of a row that a program of a sum adds up
SUM_ROWS, SUM_ENTRIES = 32, 32  # a tile of the product of rows and entries


@triton.jit
def _best_tokens(
    query, rest, keys, scales, chunk, present, start, end, width,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Best score over query rows start..end-1 of each chunk [C], and its place among them.

    SPLIT: query + rest is a float32 query as two narrow parts. HEAD > 0: keys are quantised, with
    one scale for every HEAD values; then V divides HEAD.
    """
    best = tl.full([C], float("-inf"), dtype=tl.float32)
    token = tl.zeros([C], dtype=tl.int32)
    for first in range(start, end, T):
        row = (first + tl.arange(0, T)).to(tl.int64)
        real = row < end
        scores = tl.zeros([C, T], dtype=tl.float32)
        # One pass per scale; a single one without scales.
        for head in range(0, width, HEAD if HEAD > 0 else width):
            part = tl.zeros([C, T], dtype=tl.float32)
            for v in range(head, head + (HEAD if HEAD > 0 else width), V):
                column = v + tl.arange(0, V)
                inside = column < width
                k = tl.load(
                    keys + chunk[:, None] * width + column[None, :],
                    mask=present[:, None] & inside[None, :], other=0.0,
                ).to(query.dtype.element_ty)  # fmt: skip
                at = row[None, :] * width + column[:, None]
                mask = real[None, :] & inside[:, None]
                q = tl.load(query + at, mask=mask, other=0.0)
                part = tl.dot(k, q, part, input_precision="ieee")
                if SPLIT:
                    q = tl.load(rest + at, mask=mask, other=0.0)
                    part = tl.dot(k, q, part, input_precision="ieee")
            if HEAD > 0:
                place = chunk * (width // HEAD) + head // HEAD
                part = part * tl.load(scales + place, mask=present, other=0.0)[:, None]
            scores += part
        scores = tl.where(real[None, :], scores, float("-inf"))
        top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best
        token = tl.where(better, (first - start + place).to(tl.int32), token)
        best = tl.where(better, top, best)
    return best, token


@triton.jit(do_not_specialize=["contexts", "documents", "token_bits"])
def document_maxima(
    query, rest, query_cu, keys, scales, chunk_cu, document, bank_chunks, context_bank, packed,
    contexts, documents, width, token_bits, PLACE: tl.constexpr,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    # Contexts vary fastest: those of a bank meet a tile of keys while the cache still holds it.
    context = (tl.program_id(0) % contexts).to(tl.int64)
    bank = tl.load(context_bank + context)
    first = tl.load(bank_chunks + bank) + (tl.program_id(0) // contexts).to(tl.int64) * C
    last = tl.load(bank_chunks + bank + 1)
    start, end = tl.load(query_cu + context), tl.load(query_cu + context + 1)
    if (first < last) & (start < end):
        chunk = first + tl.arange(0, C)
        present = chunk < last
        best, token = _best_tokens(
            query, rest, keys, scales, chunk, present, start, end, width, SPLIT, HEAD, T, C, V
        )
        owner = tl.load(document + chunk, mask=present, other=0)
        bits = best.to(tl.int32, bitcast=True)
        value = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) << 32
        if PLACE:
            place = chunk - tl.load(chunk_cu + owner, mask=present, other=0)
            value = value | (0xFFFFFFFF - ((place << token_bits) | token.to(tl.int64)))
        tl.atomic_max(packed + context * documents + owner, value, mask=present, sem="relaxed")


@triton.jit(do_not_specialize=["contexts"])
def entry_maxima(
    query, rest, query_cu, keys, index, index_cu, best_out, row_out, contexts, width,
    SPLIT: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    context = (tl.program_id(0) % contexts).to(tl.int64)
    first = tl.load(index_cu + context) + (tl.program_id(0) // contexts).to(tl.int64) * C
    last = tl.load(index_cu + context + 1)
    start, end = tl.load(query_cu + context), tl.load(query_cu + context + 1)
    if first < last:
        entry = first + tl.arange(0, C)
        present = entry < last
        chunk = tl.load(index + entry, mask=present, other=0)
        best, token = _best_tokens(
            query, rest, keys, keys, chunk, present, start, end, width, SPLIT, 0, T, C, V
        )
        tl.store(best_out + entry, best, mask=present)
        tl.store(row_out + entry, start + token, mask=present)


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


def document_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, scales: Tensor | None, chunk_cu: Tensor,
    context_bank: Tensor, bank_cu: Tensor, with_index: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Scores [m, n] float32 and, with_index, the query row and chunk [m, n] of each; those mean
    nothing where the score is -inf. scales [C, heads]: of quantised keys."""
    contexts, count, width = len(query_cu) - 1, len(chunk_cu) - 1, keys.shape[1]
    bits = token_bits(query, keys) if with_index else 0
    packed = torch.full((contexts, count), NOTHING, dtype=torch.int64, device=query.device)
    owner = torch.arange(count, device=keys.device)
    owner = owner.repeat_interleave(chunk_cu.diff(), output_size=len(keys))
    options = _score_tiles(keys, None if scales is None else width // scales.shape[1])
    query, rest = _narrow_parts(query, keys)
    if packed.numel() and len(keys):
        grid = (contexts * triton.cdiv(len(keys), options["C"]),)
        document_maxima[grid](
            query, rest, query_cu, keys, scales, chunk_cu, owner, chunk_cu[bank_cu], context_bank,
            packed, contexts, count, width, bits, with_index, SPLIT=rest is not None, **options,
        )  # fmt: skip
    return _unpack(packed, query_cu, chunk_cu, bits, with_index)


def chunk_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [S] float32 of the chunks index [S], and the query row of each."""
    contexts = len(query_cu) - 1
    best = torch.empty(len(index), dtype=torch.float32, device=query.device)
    rows = torch.empty(len(index), dtype=torch.int64, device=query.device)
    options = _score_tiles(keys, None)
    options.pop("HEAD")
    query, rest = _narrow_parts(query, keys)
    if len(index):
        grid = (contexts * triton.cdiv(len(index), options["C"]),)
        entry_maxima[grid](
            query, rest, query_cu, keys, index, index_cu, best, rows, contexts, keys.shape[1],
            SPLIT=rest is not None, **options,
        )  # fmt: skip
    return best, rows


def _score_tiles(keys: Tensor, head: int | None) -> dict[str, int]:
    """Launch options: float32 tiles are half as wide; quantised keys want whole heads, of `head`
    values each."""
    width = 32 if keys.dtype == torch.float32 else 64
    width = min(width, max(16, triton.next_power_of_2(keys.shape[1])))
    if head is not None:
        width = min(width, head & -head)  # the largest power of two that divides it
    return {**tiles("score", keys.device, V=width), "HEAD": head or 0}


def _narrow_parts(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
    """The query in the dtype that meets such keys in a product, and what that rounds off.

    Two parts of bfloat16 hold 16 bits of a float32 query, of float16 22. The interpreter's narrow
    products are not those of a GPU: there everything is float32.
    """
    narrow = torch.bfloat16 if keys.dtype.itemsize == 1 else keys.dtype
    if query.dtype == narrow or interpreting():
        return query, None
    first = query.to(narrow)
    return first, (query - first.float()).to(narrow)


def token_bits(query: Tensor, keys: Tensor) -> int:
    """How many of the 32 bits beside a score hold the place among query tokens; the others hold
    that among a document's chunks. From shapes alone, so as not to wait for the device."""
    bits = len(query).bit_length()
    if bits + len(keys).bit_length() > 32:
        raise KernelError(
            f"document_scores: {len(query)} query tokens times {len(keys)} chunks are too many to "
            "learn from in one launch; take fewer contexts or fewer documents at a time, or score "
            "them without gradients"
        )
    return bits


def _unpack(
    packed: Tensor, query_cu: Tensor, chunk_cu: Tensor, bits: int, with_index: bool
) -> tuple[Tensor, ...]:
    exists = packed != NOTHING
    ordered = (packed >> 32).to(torch.int32)
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    scores = scores.masked_fill(~exists, -torch.inf)
    if not with_index:
        return (scores,)
    later = 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    rows = query_cu[:-1, None] + (later & ((1 << bits) - 1))
    chunks = chunk_cu[:-1] + (later >> bits)
    return scores, rows * exists, chunks * exists


def sum_into_chunks(
    source: Tensor, rows: Tensor, weights: Tensor | None, chunks: Tensor, like: Tensor
) -> Tensor:
    """Like `like` [C, V]: weights[i] * source[rows[i]] added to chunks[i], in float32.

    source [N, V]; rows, chunks, weights [E]; a chunk of -1 takes no part. Attention sums the
    gradients of selected chunks with it.
    """
    out = torch.zeros_like(like)
    if len(rows) and out.numel():
        target, order = chunks.sort(stable=True)
        grid = (len(rows), triton.cdiv(source.shape[1], SUM_VALUES))
        sum_runs[grid](
            source, rows, weights, order, target, out, len(rows), source.shape[1],
            WEIGHTED=weights is not None, V=SUM_VALUES,
        )  # fmt: skip
    return out


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
