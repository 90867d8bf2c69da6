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

from msa_kernels.errors import KernelError
from msa_kernels.gpu.launch import score_tiles

NOTHING = -(1 << 63)


@triton.jit
def _best_tokens(
    query, keys, scales, chunk, present, start, end, width,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Best score over query rows start..end-1 of each chunk [C], and its place among them.

    SPLIT: a float32 query meets narrow keys as the sum of two narrow parts. HEAD > 0: keys are
    quantised, with a scale for each stretch of HEAD values; then V divides HEAD.
    """
    narrow = query.dtype.element_ty
    if SPLIT:
        narrow = tl.bfloat16 if HEAD > 0 else keys.dtype.element_ty
    best = tl.full([C], float("-inf"), dtype=tl.float32)
    token = tl.zeros([C], dtype=tl.int32)
    for first in range(start, end, T):
        row = (first + tl.arange(0, T)).to(tl.int64)
        real = row < end
        scores = tl.zeros([T, C], dtype=tl.float32)
        for v in range(0, width, V):
            column = v + tl.arange(0, V)
            inside = column < width
            q = tl.load(
                query + row[:, None] * width + column[None, :],
                mask=real[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            k = tl.load(
                keys + chunk[None, :] * width + column[:, None],
                mask=present[None, :] & inside[:, None], other=0.0,
            )  # fmt: skip
            k = k.to(narrow)
            if SPLIT:
                high = q.to(narrow)
                low = (q - high.to(tl.float32)).to(narrow)
                part = tl.dot(high, k) + tl.dot(low, k)
            else:
                part = tl.dot(q, k, input_precision="ieee")
            if HEAD > 0:
                heads = width // HEAD
                scale = tl.load(scales + chunk * heads + v // HEAD, mask=present, other=0.0)
                part = part * scale[None, :]
            scores += part
        scores = tl.where(real[:, None], scores, float("-inf"))
        top, place = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        better = top > best
        token = tl.where(better, (first - start + place).to(tl.int32), token)
        best = tl.where(better, top, best)
    return best, token


@triton.jit
def document_maxima(
    query, query_cu, keys, scales, chunk_cu, document, bank_chunks, context_bank, packed,
    contexts, documents, width, token_bits,
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
            query, keys, scales, chunk, present, start, end, width, SPLIT, HEAD, T, C, V
        )
        owner = tl.load(document + chunk, mask=present, other=0)
        place = chunk - tl.load(chunk_cu + owner, mask=present, other=0)
        bits = best.to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        later = (place << token_bits) | token.to(tl.int64)
        value = (ordered << 32) | (0xFFFFFFFF - later)
        tl.atomic_max(packed + context * documents + owner, value, mask=present)


@triton.jit
def entry_maxima(
    query, query_cu, keys, index, index_cu, best_out, row_out, contexts, width,
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
            query, keys, keys, chunk, present, start, end, width, SPLIT, 0, T, C, V
        )
        tl.store(best_out + entry, best, mask=present)
        tl.store(row_out + entry, start + token, mask=present)


def documents(
    query: Tensor,
    query_cu: Tensor,
    keys: Tensor,
    scales: Tensor | None,
    chunk_cu: Tensor,
    context_bank: Tensor,
    bank_cu: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [m, n] float32, and the query row and chunk [m, n] of each (any where it is -inf)."""
    contexts, count, width = len(query_cu) - 1, len(chunk_cu) - 1, keys.shape[1]
    bits = token_bits(query, keys)
    packed = torch.full((contexts, count), NOTHING, dtype=torch.int64, device=query.device)
    owner = torch.arange(count, device=keys.device)
    owner = owner.repeat_interleave(chunk_cu.diff(), output_size=len(keys))
    tiles = score_tiles(query, keys, None if scales is None else width // scales.shape[1])
    if packed.numel() and len(keys):
        grid = (contexts * triton.cdiv(len(keys), tiles["C"]),)
        document_maxima[grid](
            query, query_cu, keys, scales, chunk_cu, owner, chunk_cu[bank_cu], context_bank, packed,
            contexts, count, width, bits, **tiles,
        )  # fmt: skip
    return _unpack(packed, query_cu, chunk_cu, bits)


def token_bits(query: Tensor, keys: Tensor) -> int:
    """Of the 32 bits beside a score, those for a place among query tokens; the rest is for one
    among a document's chunks. From the shapes, so that nobody waits for the device."""
    bits = len(query).bit_length()
    if bits + len(keys).bit_length() > 32:
        raise KernelError(
            f"document_scores: {len(query)} query tokens times {len(keys)} chunks are too many "
            "for one launch; score fewer contexts, or fewer documents, at a time"
        )
    return bits


def _unpack(
    packed: Tensor, query_cu: Tensor, chunk_cu: Tensor, token_bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    exists = packed != NOTHING
    ordered = (packed >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    scores = bits.view(torch.float32).masked_fill(~exists, -torch.inf)
    later = 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    rows = query_cu[:-1, None] + (later & ((1 << token_bits) - 1))
    chunks = chunk_cu[:-1] + (later >> token_bits)
    return scores, rows * exists, chunks * exists


def entries(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [S] float32 of the chunks index [S], and the query row of each."""
    contexts = len(query_cu) - 1
    best = torch.empty(len(index), dtype=torch.float32, device=query.device)
    rows = torch.empty(len(index), dtype=torch.int64, device=query.device)
    tiles = score_tiles(query, keys, None)
    tiles.pop("HEAD")
    if len(index):
        grid = (contexts * triton.cdiv(len(index), tiles["C"]),)
        entry_maxima[grid](
            query, query_cu, keys, index, index_cu, best, rows, contexts, keys.shape[1], **tiles
        )
    return best, rows
