"""Attention of the two streams (SPEC sections 1 and 2).

On CUDA one Triton kernel reads selected chunks where they lie; it is the documents' attention too,
as contexts that select nothing. Elsewhere sequences of similar length form padded batches for
torch's own fused attention. Nothing quadratic in a length is kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.ragged import padded_rows, similar_lengths

SCRATCH_MB = 64.0
SLACK, WASTE = 128, 0.1  # padded rows of a batch, where the cost is quadratic (measured)
ALIGN = 16  # padded lengths that the fused CPU kernel's matrix products like (measured)

# Packed rows as padded batches.


@dataclass(frozen=True)
class Padding:
    """A packed tensor's rows as padded sequences in another order, and the way back.

    rows [p] the packed row of each padded row: padding repeats the sequence's last row (row 0 where
    the sequence is empty). place [N] the padded row of each packed row; where sequences are left
    out (`complete` is False), theirs is p, a row of zeros. real [p]: whether a row is not padding.
    `same`: nothing is padded, left out or in another order.
    """

    rows: Tensor
    real: Tensor
    place: Tensor
    complete: bool
    same: bool

    def pad(self, packed: Tensor) -> Tensor:
        """[N, ...] -> [p, ...]; no gradient through padding."""
        return packed if self.same else _Pad.apply(packed, self)

    def unpad(self, padded: Tensor) -> Tensor:
        """[p, ...] -> [N, ...]; zero for the rows of sequences left out."""
        return padded if self.same else _Unpad.apply(padded, self)

    def take(self, packed: Tensor) -> Tensor:
        flat = packed.flatten(1) if packed.dim() > 1 else packed
        return flat.index_select(0, self.rows).view(-1, *packed.shape[1:])

    def give(self, padded: Tensor) -> Tensor:
        flat = padded.flatten(1) if padded.dim() > 1 else padded
        if not self.complete:
            flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        return flat.index_select(0, self.place).view(-1, *padded.shape[1:])


class _Pad(torch.autograd.Function):
    """Each packed row has one real copy: the gradient is gathered, never added up."""

    @staticmethod
    def forward(ctx, packed: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return padding.take(packed)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.padding.give(grad), None


class _Unpad(torch.autograd.Function):
    """Padding gets no gradient: its rows are dropped."""

    @staticmethod
    def forward(ctx, padded: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return padding.give(padded)

    @staticmethod
    def backward(ctx, grad: Tensor):
        padding = ctx.padding
        taken = padding.take(grad)
        return taken * padding.real.view(-1, *[1] * (taken.dim() - 1)), None


@dataclass(frozen=True)
class PaddedBatch:
    """r sequences padded to t query rows, `keys` own keys and s selected chunks each."""

    members: list[int]
    t: int
    keys: int
    s: int

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.t, self.keys, self.s


def make_batches(
    sizes: list[tuple[int, int, int]], budget: int, itemsize: int
) -> list[PaddedBatch]:
    """Batches of the sequences (t, keys, s) that have query rows; masks fit the budget if they can.

    budget: bytes; itemsize: bytes of a mask's value.
    """
    lengths = [keys + s if t else 0 for t, keys, s in sizes]
    limit = budget // (itemsize * max([1, *(t for t, _, _ in sizes)]))
    batches = []
    for members in similar_lengths(lengths, SLACK, WASTE, limit=max(1, limit)):
        t, keys, s = (max(part) for part in zip(*(sizes[i] for i in members), strict=True))
        if t > 1:
            t, keys = (-(-width // ALIGN) * ALIGN for width in (t, keys))
        batches.append(PaddedBatch(members, t, keys, s))
    return batches


def batch_padding(cu: Tensor, batches: list[PaddedBatch], part: int) -> tuple[Padding, list[int]]:
    """(padding of the packed rows of one part, padded rows of each batch).

    part: which of a batch's widths: 0 query rows, 1 own keys, 2 selected chunks.
    """
    padded = [
        padded_rows(cu, torch.tensor(batch.members, device=cu.device), batch.widths[part])
        for batch in batches
    ]
    rows, real = (torch.cat([x.flatten() for x in each]) for each in zip(*padded, strict=True))
    kept = real.nonzero().squeeze(1)
    place = cu.new_full((int(cu[-1]),), len(rows))
    place[rows[kept]] = kept
    complete = len(kept) == len(place)
    order = [i for batch in batches for i in batch.members]
    same = complete and len(rows) == len(place) and order == sorted(order)
    padding = Padding(rows, real, place, complete, same)
    return padding, [x.numel() for x, _ in padded]


# In torch, with its fused attention. Documents need no further mask: under a causal one, padding at
# the end reaches no real token. The gate's bias is an extra dimension of the keys, met by a one in
# the queries, because the fused kernels give masks no gradient.


def _documents_in_torch(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float) -> Tensor:
    """Packed sequences attend causally to themselves; differentiable. [N, H, D]."""
    sizes = [(n, n, 0) for n in cu.diff().tolist()]
    batches = make_batches(sizes, len(q) * max(1, len(q)), 1)
    if not batches:
        return q * 1
    padding, rows = batch_padding(cu, batches, 0)
    padded = [_split(padding.pad(x), rows, batches) for x in (q, k, v)]
    parts = [_attention(*x, scale, is_causal=True) for x in zip(*padded, strict=True)]
    return padding.unpad(_join(parts))


def _contexts_in_torch(
    q: Tensor, k: Tensor, v: Tensor, cus: tuple[Tensor, ...], pooled_k: Tensor, pooled_v: Tensor,
    index: Tensor, bias: Tensor | None, memory_from: Tensor | None, scale: float, budget: int,
) -> Tensor:  # fmt: skip
    """Contexts attend to their chunks and own tokens; differentiable. cus: of q, k, index."""
    sizes = list(zip(*(cu.diff().tolist() for cu in cus), strict=True))
    batches = make_batches(sizes, budget, q.element_size())
    if not batches:
        return torch.zeros_like(q)
    paddings, counts = zip(
        *(batch_padding(cu, batches, i) for i, cu in enumerate(cus)), strict=True
    )
    rows, own, entries = paddings
    gate = None
    if bias is not None:
        gate = _gate_columns(entries.pad(bias) / scale, q.dtype)
    extra = 0 if gate is None else gate.shape[1]
    chunks, width = index[entries.rows], q.shape[2]
    q = rows.pad(q)
    if extra:
        q = F.pad(q, (0, extra), value=1.0)
    keys = _ChunksThenTokens.apply(k, pooled_k, gate, own, chunks, batches, extra)
    values = _ChunksThenTokens.apply(v, pooled_v, None, own, chunks, batches, extra)
    parts, unreal = [], (~entries.real).split(counts[2])
    for x in zip(_split(q, counts[0], batches), keys, values, batches, unreal, strict=True):
        mask = _BatchMask(*x[3:], cus, memory_from)
        parts.append(_attend_batch(*x[:3], scale, mask, budget)[..., :width])
    return rows.unpad(_join(parts))


def _gate_columns(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """bias [p] -> [p, e], columns that add up to it: one, or two of half precision.

    Only the first carries the gradient, which is that of the sum.
    """
    first = bias.to(dtype)
    if dtype.itemsize >= 4:
        return first[:, None]
    rest = (bias - first.to(bias.dtype)).detach().to(dtype)
    return torch.stack([first, rest], 1)


class _ChunksThenTokens(torch.autograd.Function):
    """Of each batch [r, G, s + keys, D + extra]: selected chunks with their gate, own tokens."""

    @staticmethod
    def forward(ctx, own, pooled, gate, padding: Padding, chunks, batches, extra: int):
        ctx.save_for_backward(chunks)
        ctx.sizes = (padding, batches, pooled.shape, gate is not None)
        groups, width = own.shape[1:]
        out, own, pooled = [], own.flatten(1), pooled.flatten(1)
        for batch, rows, slots in _cuts(batches):
            r, s = len(batch.members), batch.s
            both = own.new_zeros(r, s + batch.keys, groups, width + extra)
            local = own.index_select(0, padding.rows[rows]).view(r, -1, groups, width)
            both[:, s:, :, :width] = local
            if s:
                selected = pooled.index_select(0, chunks[slots]).view(r, s, groups, width)
                both[:, :s, :, :width] = selected
                if gate is not None:
                    both[:, :s, :, width:] = gate[slots].view(r, s, 1, extra)
            out.append(both.transpose(1, 2))
        return tuple(out)

    @staticmethod
    def backward(ctx, *grads):
        padding, batches, (count, groups, width), gated = ctx.sizes
        (chunks,) = ctx.saved_tensors
        d_own = grads[0].new_empty(len(padding.rows), groups, width)
        d_pooled = grads[0].new_zeros(count, groups * width)
        d_gate = []
        for grad, (batch, rows, slots) in zip(grads, _cuts(batches), strict=True):
            grad, s = grad.transpose(1, 2), batch.s
            d_own[rows] = grad[:, s:, :, :width].flatten(0, 1)
            # Padding entries are hidden from every row: what they add is zero.
            d_pooled.index_add_(0, chunks[slots], grad[:, :s, :, :width].flatten(0, 1).flatten(1))
            d_gate.append(grad[:, :s, :, width:].sum(2).flatten(0, 1))
        d_gate = torch.cat(d_gate) if gated else None
        return padding.give(d_own), d_pooled.view(count, groups, width), d_gate, *[None] * 4


def _cuts(batches: list[PaddedBatch]) -> Iterator[tuple[PaddedBatch, slice, slice]]:
    """(batch, its padded own rows, its padded entries)."""
    rows = slots = 0
    for batch in batches:
        r = len(batch.members)
        ends = rows + r * batch.keys, slots + r * batch.s
        yield batch, slice(rows, ends[0]), slice(slots, ends[1])
        rows, slots = ends


class _BatchMask:
    """Hides from a batch's query rows padding, later tokens and, before memory_from, all chunks."""

    def __init__(self, batch: PaddedBatch, unreal: Tensor, cus: tuple, memory_from: Tensor | None):
        members = torch.tensor(batch.members, device=unreal.device)
        self.batch, self.unreal = batch, unreal.view(len(members), 1, batch.s)
        self.lead = (cus[1].diff() - cus[0].diff())[members]
        self.memory_from = None if memory_from is None else memory_from[members]

    def rows(self, start: int, end: int, columns: int, like: Tensor) -> Tensor:
        """Additive [r, 1, rows, s + own columns] for query rows start..end-1."""
        row = torch.arange(start, end, device=like.device)
        key = torch.arange(columns - self.batch.s, device=like.device)
        later = key > (row + self.lead[:, None])[..., None]
        memory = self.unreal.expand(-1, end - start, -1)
        if self.memory_from is not None:
            memory = memory | (row < self.memory_from[:, None])[..., None]
        hidden = torch.cat([memory, later], 2)
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]


def _attend_batch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: _BatchMask, budget: int
) -> Tensor:
    """q [r, H, t, D'], k, v [r, G, s+keys, D'] -> [r*t, H, D'], in steps whose masks fit."""
    batch, parts = mask.batch, []
    step = max(1, budget // (len(q) * k.shape[2] * q.element_size()))
    for start in range(0, batch.t, step):
        end = min(start + step, batch.t)
        columns = batch.s + min(batch.keys, end + int(mask.lead.max()))
        seen = [x[:, :, :columns] for x in (k, v)]
        part = _attention(
            q[:, :, start:end], *seen, scale, attn_mask=mask.rows(start, end, columns, q)
        )
        parts.append(part.unflatten(0, (len(q), -1)))
    return _join(parts, 1).flatten(0, 1)


def _split(padded: Tensor, rows: list[int], batches: list[PaddedBatch]) -> list[Tensor]:
    """[p, heads, D] -> of each batch [r, heads, width, D]."""
    pieces = padded.split(rows) if len(rows) > 1 else [padded]  # its backward is a copy
    parts = zip(pieces, batches, strict=True)
    return [x.unflatten(0, (len(b.members), -1)).transpose(1, 2) for x, b in parts]


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, **mask) -> Tensor:
    """[r, H, t, D] -> packed rows [r*t, H, D]."""
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, **mask)
    return out.transpose(1, 2).flatten(0, 1)


def _join(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


# The operator of the Triton kernel and its gradient.


@dispatch.operator("context_attention")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor, k_cu: Tensor, pooled_k: Tensor,
    pooled_v: Tensor, index: Tensor, index_cu: Tensor, bias: Tensor | None,
    memory_from: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[Nq, H, D] and the logarithms of the softmax sums [Nq, H], by the Triton kernel."""
    from msa_kernels import attend_triton

    head = torch.zeros_like(q_cu[1:]) if memory_from is None else memory_from
    memory = pooled_k, pooled_v, index, bias, head
    return attend_triton.forward(q, k, v, *memory, (q_cu, k_cu, index_cu), scale)


@torch.library.register_fake(_attend)
def _(q, k, v, q_cu, k_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@dispatch.operator("context_attention_backward", learns=False)
def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor,
    k_cu: Tensor, pooled_k: Tensor, pooled_v: Tensor, index: Tensor, index_cu: Tensor,
    bias: Tensor | None, memory_from: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, pooled_k, pooled_v and bias ([0] without one)."""
    from msa_kernels import attend_triton

    head = torch.zeros_like(q_cu[1:]) if memory_from is None else memory_from
    given = grad, out, lse, q, k, v, pooled_k, pooled_v, index, bias, head
    *states, d_bias = attend_triton.backward(*given, (q_cu, k_cu, index_cu), scale)
    return *states, q.new_empty(0) if bias is None else d_bias


@torch.library.register_fake(_attend_backward)
def _(grad, out, lse, q, k, v, q_cu, k_cu, pooled_k, pooled_v, index, index_cu, bias, *_):
    states = (x.new_empty(x.shape) for x in (q, k, v, pooled_k, pooled_v))
    return *states, q.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx, grad, _):
    saved = ctx.saved_tensors  # once: what recomputation gives it gives no second time
    found = _attend_backward(grad, *saved, ctx.scale)
    d_q, d_k, d_v, d_pooled_k, d_pooled_v, d_bias = found
    d_bias = None if saved[11] is None else d_bias
    return d_q, d_k, d_v, None, None, d_pooled_k, d_pooled_v, None, None, d_bias, None, None


torch.library.register_autograd(_attend, _differentiate, setup_context=_save)


def document_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Causal attention inside each packed document (SPEC section 1).

    q [N, H, D], k, v [N, G, D] of one dtype, cu_seqlens [n+1] -> [N, H, D]; head i reads kv head
    i // (H/G). Differentiable in q, k, v. Raises KernelError for tensors that do not fit together.
    """
    _check("document_attention", q, k, v, cu_seqlens, cu_seqlens)
    if not dispatch.takes_triton("document_attention", q, k, v):
        return _documents_in_torch(q, k, v, cu_seqlens, scale)
    nothing = q.new_empty(0, *k.shape[1:]), cu_seqlens.new_empty(0), torch.zeros_like(cu_seqlens)
    states, index, index_cu = nothing
    cus = cu_seqlens, cu_seqlens
    return _attend(q, k, v, *cus, states, states, index, index_cu, None, None, scale)[0]


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_cu: Tensor,
    k_cu: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    index: Tensor,
    index_cu: Tensor,
    bias: Tensor | None,
    memory_from: Tensor | None,
    scale: float,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Each context attends to its selected pooled chunks and its own tokens (SPEC section 2).

    q [Nq, H, D], k, v [Nk, G, D]; q_cu, k_cu [m+1]: a context's q rows are its LAST tokens (all in
    training, the newest in decoding), each sees its own and earlier keys. pooled_k, pooled_v
    [C, G, D]; index [S], index_cu [m+1]: the chunks each context reads; bias [S] (the gate, SPEC
    section 3) is added to an entry's logits for all heads; q rows before memory_from [m] (counted
    within the context's q rows) see no chunk: the template head never depends on the memory.
    Returns [Nq, H, D]. Differentiable in q, k, v, pooled_k, pooled_v, bias; gradients are the same
    in every run. scratch_mb bounds the masks of the torch path. Raises KernelError for tensors that
    do not fit together.
    """
    _check("context_attention", q, k, v, q_cu, k_cu)
    _check_selected(q, k, q_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from)
    if dispatch.can_inspect(q_cu) and bool((q_cu.diff() > k_cu.diff()).any()):
        raise KernelError("context_attention: a context has more q rows than keys (q_cu, k_cu)")
    if not dispatch.takes_triton("context_attention", q, k, v, pooled_k, pooled_v):
        cus, budget = (q_cu, k_cu, index_cu), int(scratch_mb * (1 << 20))
        memory = (pooled_k, pooled_v, index, bias, memory_from)
        return _contexts_in_torch(q, k, v, cus, *memory, scale, budget)
    entries = (index, index_cu, bias, memory_from)
    return _attend(q, k, v, q_cu, k_cu, pooled_k, pooled_v, *entries, scale)[0]


def _check_selected(q, k, q_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from) -> None:
    name = "context_attention"
    floating = {"pooled_k": pooled_k, "pooled_v": pooled_v, "bias": bias}
    dispatch.check_floating(name, q=q, **floating)
    if pooled_k.shape != pooled_v.shape or pooled_k.shape[1:] != k.shape[1:]:
        shapes = tuple(pooled_k.shape), tuple(pooled_v.shape)
        raise KernelError(
            f"{name}: pooled_k, pooled_v have shapes {shapes}; need [C, *{tuple(k.shape[1:])}]"
        )
    dispatch.check_numbers(name, "index", index)
    dispatch.check_cumulative(name, "index_cu", index_cu, len(index))
    if bias is not None and bias.shape != index.shape:
        raise KernelError(f"{name}: bias has shape {tuple(bias.shape)}; need [{len(index)}]")
    if memory_from is not None:
        dispatch.check_numbers(name, "memory_from", memory_from, len(q_cu) - 1)


def _check(operation: str, q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor, k_cu: Tensor) -> None:
    dispatch.check_floating(operation, q=q, k=k, v=v)
    if k.shape != v.shape or q.dim() != 3 or k.dim() != 3 or q.shape[2] != k.shape[2]:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise KernelError(
            f"{operation}: q, k, v have shapes {shapes}; need [N, H, D], [N, G, D] twice"
        )
    if q.shape[1] % k.shape[1]:
        raise KernelError(
            f"{operation}: {q.shape[1]} query heads are not a multiple of {k.shape[1]} kv heads"
        )
    dispatch.check_cumulative(operation, "q_cu", q_cu, len(q))
    dispatch.check_cumulative(operation, "k_cu", k_cu, len(k))
    if len({x.dtype for x in (q, k, v)}) > 1:
        raise KernelError(f"{operation}: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; need one")
