"""Scoring: a tile of chunks against all query tokens of a context, reduced before it is written.

What leaves the registers is one number for each document: its score, the chunk and the token that
reach it, packed so that the largest number is the highest score, then the first chunk, then its
first token. Maxima of such numbers do not depend on the order in which programs arrive.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import interpreting
from msa_kernels.errors import KernelError
from msa_kernels.gpu.launch import score_tiles

NOTHING = -(1 << 63)


@triton.jit
def _best_tokens(
    query, rest, keys, scales, chunk, present, start, end, width,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Best score over query rows start..end-1 of each chunk [C], and its place among them.

    SPLIT: query + rest is a float32 query as two narrow parts. HEAD > 0: keys are quantised, with
    a scale for each stretch of HEAD values; then V divides HEAD.
    """
    best = tl.full([C], float("-inf"), dtype=tl.float32)
    token = tl.zeros([C], dtype=tl.int32)
    for first in range(start, end, T):
        row = (first + tl.arange(0, T)).to(tl.int64)
        real = row < end
        scores = tl.zeros([C, T], dtype=tl.float32)
        # Stretches of one scale each; without scales a single one.
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


def documents(
    query: Tensor, query_cu: Tensor, keys: Tensor, scales: Tensor | None, chunk_cu: Tensor,
    context_bank: Tensor, bank_cu: Tensor, with_index: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Scores [m, n] float32 and, with_index, the query row and chunk [m, n] of each (any where it
    is -inf)."""
    contexts, count, width = len(query_cu) - 1, len(chunk_cu) - 1, keys.shape[1]
    bits = token_bits(query, keys) if with_index else 0
    packed = torch.full((contexts, count), NOTHING, dtype=torch.int64, device=query.device)
    owner = torch.arange(count, device=keys.device)
    owner = owner.repeat_interleave(chunk_cu.diff(), output_size=len(keys))
    tiles = score_tiles(keys, None if scales is None else width // scales.shape[1])
    query, rest = _narrow_parts(query, keys)
    if packed.numel() and len(keys):
        grid = (contexts * triton.cdiv(len(keys), tiles["C"]),)
        document_maxima[grid](
            query, rest, query_cu, keys, scales, chunk_cu, owner, chunk_cu[bank_cu], context_bank,
            packed, contexts, count, width, bits, with_index, SPLIT=rest is not None, **tiles,
        )  # fmt: skip
    return _unpack(packed, query_cu, chunk_cu, bits, with_index)


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
    """Of the 32 bits beside a score, those for a place among query tokens; the rest is for one
    among a document's chunks. From the shapes, so that nobody waits for the device."""
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


def entries(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [S] float32 of the chunks index [S], and the query row of each."""
    contexts = len(query_cu) - 1
    best = torch.empty(len(index), dtype=torch.float32, device=query.device)
    rows = torch.empty(len(index), dtype=torch.int64, device=query.device)
    tiles = score_tiles(keys, None)
    tiles.pop("HEAD")
    query, rest = _narrow_parts(query, keys)
    if len(index):
        grid = (contexts * triton.cdiv(len(index), tiles["C"]),)
        entry_maxima[grid](
            query, rest, query_cu, keys, index, index_cu, best, rows, contexts, keys.shape[1],
            SPLIT=rest is not None, **tiles,
        )  # fmt: skip
    return best, rows
