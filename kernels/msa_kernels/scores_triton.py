"""Scores: a tile of chunks against all query tokens of a context, reduced before it is written.

What leaves the registers is one number per document: its score, and the chunk and token that reach
it, packed so that the largest number is the highest score, then the first chunk, then its first
token. Maxima of such numbers do not depend on the order in which programs arrive.

Row numbers and their products with widths are 64-bit: 100M tokens times 1,024 values pass 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from msa_kernels.dispatch import interpreting, launcher
from msa_kernels.errors import KernelError
from msa_kernels.tiles import score_tiles, vector_tiles

NOTHING = tl.constexpr(-(1 << 63))  # a packed maximum that no chunk has reached
FEW_ROWS = 4  # query rows that are multiplied as vectors, and query rows of a context that are few
UNPACKED = 1024  # maxima of a program that unpacks them
NARROW_VALUES = 1024  # of a row that are looked at together, when it is narrowed


@triton.jit
def _tile_scores(
    query, rest, scale_back, keys, scales, key, present, row, real, width,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Scores [C, T] of rows of keys and query rows, -inf where a query row is not real.

    key [C], row [T]: counted from where the pointers point; as 32-bit numbers they leave more
    registers. SPLIT: query + rest is a float32 query as two narrow parts, each row times a power of
    two, which scale_back takes away. HEAD > 0: keys are quantised, with one scale for every HEAD
    values; then V divides HEAD.
    """
    scores = tl.zeros([C, T], dtype=tl.float32)
    heads = width // (HEAD if HEAD > 0 else width)
    if HEAD > 0:  # a step ahead, so that no product waits for it
        ahead = tl.load(scales + key * heads, mask=present, other=0.0)
    for v in range(0, width, V):
        column = v + tl.arange(0, V)
        inside = column < width
        k = tl.load(
            keys + (key[:, None] * width + column[None, :]),
            mask=present[:, None] & inside[None, :], other=0.0,
        ).to(query.dtype.element_ty)  # fmt: skip
        at = row[None, :] * width + column[:, None]
        mask = real[None, :] & inside[:, None]
        q = tl.load(query + at, mask=mask, other=0.0)
        if HEAD > 0:
            scale = ahead
            next_head = tl.minimum((v + V) // HEAD, heads - 1)
            ahead = tl.load(scales + (key * heads + next_head), mask=present, other=0.0)
            part = tl.dot(k, q, input_precision="ieee")
            if SPLIT:
                part = tl.dot(k, tl.load(rest + at, mask=mask, other=0.0), part)
            scores += part * scale[:, None]
        else:
            scores = tl.dot(k, q, scores, input_precision="ieee")
            if SPLIT:
                scores = tl.dot(k, tl.load(rest + at, mask=mask, other=0.0), scores)
    if SPLIT:
        scores = scores * tl.load(scale_back + row, mask=real, other=0.0)[None, :]
    return tl.where(real[None, :], scores, float("-inf"))


@triton.jit
def _best_tokens(
    query, rest, scale_back, keys, scales, key, present, start, end, width, PLACE: tl.constexpr,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Best score over query rows start..end-1 of rows of keys [C]; with PLACE, which of them."""
    best = tl.full([C], float("-inf"), dtype=tl.float32)
    token = tl.zeros([C], dtype=tl.int32)
    row = tl.arange(0, T)
    for first in range(start, end, T):
        begin = tl.cast(first, tl.int64)
        scores = _tile_scores(
            query + begin * width, rest + begin * width if SPLIT else rest,
            scale_back + begin if SPLIT else scale_back, keys, scales, key, present,
            row, row < end - first, width, SPLIT, HEAD, T, C, V,
        )  # fmt: skip
        if PLACE:
            top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
            token = tl.where(top > best, (first - start + place).to(tl.int32), token)
        else:
            top = tl.max(scores, 1)
        best = tl.maximum(best, top)
    return best, token


@triton.jit
def _packed(score, place, token, token_bits, PLACE: tl.constexpr):
    """A number that is larger for a higher score, then for a lower place, then a lower token."""
    bits = score.to(tl.int32, bitcast=True)
    value = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) << 32
    if PLACE:
        value = value | (0xFFFFFFFF - ((place << token_bits) | token.to(tl.int64)))
    return value


@triton.jit(do_not_specialize=["contexts", "documents", "token_bits"])
def document_maxima(
    query, rest, scale_back, query_cu, keys, scales, chunk_cu, document, bank_cu, context_bank,
    packed, contexts, documents, width, token_bits, PLACE: tl.constexpr,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    # Contexts vary fastest: those of a bank meet a tile of keys while the cache still holds it.
    context = (tl.program_id(0) % contexts).to(tl.int64)
    bank = bank_cu + tl.load(context_bank + context)
    first = tl.load(chunk_cu + tl.load(bank)) + (tl.program_id(0) // contexts).to(tl.int64) * C
    last = tl.load(chunk_cu + tl.load(bank + 1))
    start, end = tl.load(query_cu + context), tl.load(query_cu + context + 1)
    if (first < last) & (start < end):
        key = tl.arange(0, C)
        chunk = first + key
        present = chunk < last
        best, token = _best_tokens(
            query, rest, scale_back, keys + first * width,
            scales + first * (width // HEAD) if HEAD > 0 else scales,
            key, present, start, end, width,
            PLACE, SPLIT, HEAD, T, C, V,
        )  # fmt: skip
        owner = tl.load(document + chunk, mask=present, other=0)
        place = chunk
        if PLACE:
            place -= tl.load(chunk_cu + owner, mask=present, other=0)
        value = _packed(best, place, token, token_bits, PLACE)
        tl.atomic_max(packed + context * documents + owner, value, mask=present, sem="relaxed")


@triton.jit
def _banks_of_rows(row, real, row_context, chunk_cu, bank_cu, context_bank):
    """Context of each query row, first chunk of its bank and the end; an empty one if not real."""
    context = tl.load(row_context + row, mask=real, other=0)
    bank = bank_cu + tl.load(context_bank + context, mask=real, other=0)
    low = tl.load(chunk_cu + tl.load(bank, mask=real, other=0), mask=real, other=0)
    high = tl.load(chunk_cu + tl.load(bank + 1, mask=real, other=0), mask=real, other=0)
    return context, low, high


@triton.jit(do_not_specialize=["rows", "documents", "token_bits"])
def row_maxima(
    query, rest, scale_back, query_cu, row_context, keys, scales, chunk_cu, document, bank_cu,
    context_bank, packed, rows, documents, width, token_bits, PLACE: tl.constexpr,
    SPLIT: tl.constexpr, HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """As document_maxima, of any T query rows at once, whatever their contexts."""
    tiles = tl.cdiv(rows, T)
    begin, row = (tl.program_id(0) % tiles).to(tl.int64) * T, tl.arange(0, T)
    real = row < rows - begin
    context, low, high = _banks_of_rows(
        begin + row, real, row_context, chunk_cu, bank_cu, context_bank
    )
    first, key = (tl.program_id(0) // tiles).to(tl.int64) * C, tl.arange(0, C)
    chunk = first + key
    seen = (chunk[:, None] >= low[None, :]) & (chunk[:, None] < high[None, :])
    present = tl.max(seen.to(tl.int32), 1) > 0
    if tl.max(present.to(tl.int32), 0) > 0:
        scores = _tile_scores(
            query + begin * width, rest + begin * width if SPLIT else rest,
            scale_back + begin if SPLIT else scale_back, keys + first * width,
            scales + first * (width // HEAD) if HEAD > 0 else scales,
            key, present, row, real, width, SPLIT, HEAD, T, C, V,
        )  # fmt: skip
        owner = tl.load(document + chunk, mask=present, other=0)
        place, token = chunk, begin + row
        if PLACE:
            place -= tl.load(chunk_cu + owner, mask=present, other=0)
            token -= tl.load(query_cu + context, mask=real, other=0)
        value = _packed(scores, place[:, None], token[None, :], token_bits, PLACE)
        at = context[None, :] * documents + owner[:, None]
        tl.atomic_max(packed + at, value, mask=seen, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "documents", "token_bits"])
def vector_maxima(
    query, query_cu, row_context, keys, scales, chunk_cu, document, bank_cu, context_bank, packed,
    rows, documents, width, token_bits, PLACE: tl.constexpr,
    HEAD: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """As row_maxima, of all query rows, which are at most T: products of a matrix and vectors, by
    no tensor core, in float32 throughout."""
    row = tl.arange(0, T)
    real = row < rows
    context, low, high = _banks_of_rows(row, real, row_context, chunk_cu, bank_cu, context_bank)
    first, key = tl.program_id(0).to(tl.int64) * C, tl.arange(0, C)
    chunk = first + key
    seen = (chunk[None, :] >= low[:, None]) & (chunk[None, :] < high[:, None])
    present = tl.max(seen.to(tl.int32), 0) > 0
    if tl.max(present.to(tl.int32), 0) > 0:
        owner = tl.load(document + chunk, mask=present, other=0)
        scores = tl.zeros([T, C], dtype=tl.float32)
        for v in range(0, width, V):
            column = v + tl.arange(0, V)
            inside = column < width
            k = tl.load(
                keys + first * width + (key[:, None] * width + column[None, :]),
                mask=present[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            q = tl.load(
                query + row[:, None] * width + column[None, :],
                mask=real[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            part = tl.sum(k[None, :, :] * q[:, None, :], 2)
            if HEAD > 0:
                own = chunk * (width // HEAD) + v // HEAD
                part = part * tl.load(scales + own, mask=present, other=0.0)[None, :]
            scores += part
        place, token = chunk, row.to(tl.int64)
        if PLACE:
            place -= tl.load(chunk_cu + owner, mask=present, other=0)
            token -= tl.load(query_cu + context, mask=real, other=0)
        value = _packed(scores, place[None, :], token[:, None], token_bits, PLACE)
        at = context[:, None] * documents + owner[None, :]
        tl.atomic_max(packed + at, value, mask=seen, sem="relaxed")


@triton.jit(do_not_specialize=["documents", "token_bits"])
def unpack_maxima(
    packed, query_cu, chunk_cu, scores, rows, chunks, documents, token_bits,
    PLACE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Scores, and with PLACE the query row and chunk, of packed maxima [m, documents]."""
    tiles = tl.cdiv(documents, N)
    context = (tl.program_id(0) // tiles).to(tl.int64)
    document = (tl.program_id(0) % tiles) * N + tl.arange(0, N)
    inside = document < documents
    at = context * documents + document
    value = tl.load(packed + at, mask=inside, other=0)
    exists = value != NOTHING
    ordered = (value >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    score = bits.to(tl.float32, bitcast=True)
    tl.store(scores + at, tl.where(exists, score, float("-inf")), mask=inside)
    if PLACE:
        later = 0xFFFFFFFF - (value & 0xFFFFFFFF)
        chunk = tl.load(chunk_cu + document, mask=inside, other=0) + (later >> token_bits)
        row = tl.load(query_cu + context) + (later & ((1 << token_bits) - 1))
        tl.store(rows + at, tl.where(exists, row, 0), mask=inside)
        tl.store(chunks + at, tl.where(exists, chunk, 0), mask=inside)


@triton.jit(do_not_specialize=["contexts"])
def entry_maxima(
    query, rest, scale_back, query_cu, keys, index, index_cu, best_out, row_out, contexts, width,
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
            query, rest, scale_back, keys, keys, chunk, present, start, end, width,
            True, SPLIT, 0, T, C, V,
        )  # fmt: skip
        tl.store(best_out + entry, best, mask=present)
        tl.store(row_out + entry, start + token, mask=present)


@triton.jit
def narrow_rows(query, first_out, rest_out, scale_back, width, V: tl.constexpr):
    """A float32 row times a power of two, in two narrow parts.

    The largest value then lies between 2^13 and 2^14: what float16 cannot hold of a part is too
    small to count beside it, and nothing overflows.
    """
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([V], dtype=tl.float32)
    for v in range(0, width, V):
        column = v + tl.arange(0, V)
        value = tl.load(query + row * width + column, mask=column < width, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
    exponent = tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23
    # Exponents of float32 go from 1 to 254; that of a power and its inverse add up to 254.
    power = tl.minimum(tl.maximum(254 + 13 - exponent, 1), 253)
    tl.store(scale_back + row, ((254 - power) << 23).to(tl.float32, bitcast=True))
    scale = (power << 23).to(tl.float32, bitcast=True)
    for v in range(0, width, V):
        column = v + tl.arange(0, V)
        inside = column < width
        value = tl.load(query + row * width + column, mask=inside, other=0.0) * scale
        first = value.to(first_out.dtype.element_ty)
        tl.store(first_out + row * width + column, first, mask=inside)
        rest = (value - first.to(tl.float32)).to(rest_out.dtype.element_ty)
        tl.store(rest_out + row * width + column, rest, mask=inside)


@launcher
def document_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, scales: Tensor | None, chunk_cu: Tensor,
    context_bank: Tensor, bank_cu: Tensor, with_index: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Scores [m, n] float32 and, with_index, the query row and chunk [m, n] of each; those mean
    nothing where the score is -inf. scales [C, heads]: of quantised keys.

    Three kernels give the same for any lengths; shapes alone say which of them is fast, so that
    nothing waits for the device.
    """
    contexts, rows = len(query_cu) - 1, len(query)
    bits = token_bits(query, keys) if with_index else 0
    packed = torch.full(
        (contexts, len(chunk_cu) - 1), NOTHING.value, dtype=torch.int64, device=query.device
    )
    if packed.numel() and len(keys) and rows:
        banks = chunk_cu, owners(chunk_cu, len(keys)), bank_cu, context_bank, packed
        given = keys, scales, banks, bits, with_index
        if rows <= FEW_ROWS:
            _launch_vectors(query, query_cu, *given)
        elif rows <= FEW_ROWS * contexts:
            _launch_rows(query, query_cu, *given)
        else:
            _launch_contexts(query, query_cu, *given)
    return _unpack(packed, query_cu, chunk_cu, bits, with_index)


def _launch_vectors(query, query_cu, keys, scales, banks, bits: int, with_index: bool) -> None:
    head = _head(keys, scales)
    options = vector_tiles(keys, len(query), head)
    vector_maxima[(triton.cdiv(len(keys), options["C"]),)](
        query, query_cu, _contexts_of_rows(query, query_cu), keys, scales, *banks,
        len(query), banks[-1].shape[1], keys.shape[1], bits, with_index, HEAD=head, **options,
    )  # fmt: skip


def _launch_rows(query, query_cu, keys, scales, banks, bits: int, with_index: bool) -> None:
    head, parts = _head(keys, scales), _narrow_parts(query, keys)
    options = _score_options(keys, parts, len(query), head, True)
    tiles = triton.cdiv(len(query), options["T"]) * triton.cdiv(len(keys), options["C"])
    row_maxima[(tiles,)](
        *parts, query_cu, _contexts_of_rows(query, query_cu), keys, scales, *banks,
        len(query), banks[-1].shape[1], keys.shape[1], bits, with_index, HEAD=head, **options,
    )  # fmt: skip


def _launch_contexts(query, query_cu, keys, scales, banks, bits: int, with_index: bool) -> None:
    head, parts, contexts = _head(keys, scales), _narrow_parts(query, keys), len(query_cu) - 1
    options = _score_options(keys, parts, triton.cdiv(len(query), contexts), head)
    document_maxima[(contexts * triton.cdiv(len(keys), options["C"]),)](
        *parts, query_cu, keys, scales, *banks, contexts, banks[-1].shape[1], keys.shape[1], bits,
        with_index, HEAD=head, **options,
    )  # fmt: skip


def _head(keys: Tensor, scales: Tensor | None) -> int:
    """Values that share a scale, 0 without."""
    return 0 if scales is None else keys.shape[1] // scales.shape[1]


def _score_options(
    keys: Tensor, parts: tuple, rows: int, head: int, each_row: bool = False
) -> dict[str, int]:
    split = parts[1] is not None
    return {**score_tiles(keys, parts[0], 1 + split, rows, head, each_row), "SPLIT": split}


def _contexts_of_rows(query: Tensor, query_cu: Tensor) -> Tensor:
    row = torch.arange(len(query), device=query_cu.device)
    return torch.searchsorted(query_cu[1:], row, right=True)


@launcher
def chunk_scores(
    query: Tensor, query_cu: Tensor, keys: Tensor, index: Tensor, index_cu: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [S] float32 of the chunks index [S], and the query row of each."""
    contexts = len(query_cu) - 1
    best = torch.empty(len(index), dtype=torch.float32, device=query.device)
    rows = torch.empty(len(index), dtype=torch.int64, device=query.device)
    if len(index):
        parts = _narrow_parts(query, keys)
        options = _score_options(keys, parts, triton.cdiv(len(query), contexts), 0)
        grid = (contexts * triton.cdiv(len(index), options["C"]),)
        entry_maxima[grid](
            *parts, query_cu, keys, index, index_cu, best, rows, contexts, keys.shape[1], **options
        )
    return best, rows


def _narrow_parts(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The query in the dtype that meets such keys in a product, what that rounds off, and what
    takes the power of two away again by which both were multiplied, [N].

    Two parts of bfloat16 hold 16 bits of a float32 query, of float16 22.
    """
    narrow = _meeting(keys.dtype)
    if narrow in (query.dtype, torch.float32):
        return query.to(narrow), None, None
    first, rest = (torch.empty_like(query, dtype=narrow) for _ in range(2))
    scale_back = torch.empty(len(query), dtype=torch.float32, device=query.device)
    if query.numel():
        narrow_rows[(len(query),)](query, first, rest, scale_back, query.shape[1], V=NARROW_VALUES)
    return first, rest, scale_back


def _meeting(keys: torch.dtype) -> torch.dtype:
    """The dtype of a query that is multiplied with such keys: one that holds them, and that a card
    makes of them quickly. Triton's interpreter has no products in bfloat16."""
    if interpreting() and keys in (torch.bfloat16, torch.int8):
        return torch.float32 if keys == torch.bfloat16 else torch.float16
    if keys.itemsize == 1:
        return torch.float16 if keys.is_floating_point else torch.bfloat16
    return keys


# The tables of offsets that were asked for: layers and searches use the same ones again.
_owners = WeakTensorKeyDictionary()


def owners(chunk_cu: Tensor, chunks: int) -> Tensor:
    """[chunks] int32, the document of each chunk; kept for as long as chunk_cu [n+1] lives."""
    # Whether a tensor of inference mode was changed since cannot be told, and a captured graph is
    # replayed with other offsets in the same place.
    if chunk_cu.is_inference() or (chunk_cu.is_cuda and torch.cuda.is_current_stream_capturing()):
        return _owners_of(chunk_cu, chunks)
    # Another stream might read the table before it is written.
    stream = torch.cuda.current_stream(chunk_cu.device).cuda_stream if chunk_cu.is_cuda else 0
    mark = chunk_cu._version, stream
    kept = _owners.get(chunk_cu)
    if kept is None or kept[0] != mark:
        kept = _owners[chunk_cu] = mark, _owners_of(chunk_cu, chunks)
    return kept[1]


def _owners_of(chunk_cu: Tensor, chunks: int) -> Tensor:
    document = torch.arange(len(chunk_cu) - 1, dtype=torch.int32, device=chunk_cu.device)
    return document.repeat_interleave(chunk_cu.diff(), output_size=chunks)


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
    scores = torch.empty(packed.shape, dtype=torch.float32, device=packed.device)
    places = tuple(torch.empty_like(packed) for _ in range(2 if with_index else 0))
    if packed.numel():
        tiles = triton.cdiv(packed.shape[1], UNPACKED)
        rows, chunks = places or (None, None)
        unpack_maxima[(len(packed) * tiles,)](
            packed, query_cu, chunk_cu, scores, rows, chunks, packed.shape[1], bits, with_index,
            N=UNPACKED,
        )  # fmt: skip
    return scores, *places
