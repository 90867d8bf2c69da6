"""Attention of documents and contexts in torch.

Sequences of similar length form padded batches for torch's fused attention: nothing quadratic in a
length is kept for backward. Documents need no mask: under a causal mask, padding at the end
reaches no real token. The gate's bias is an extra dimension of the keys, met by a one in the
queries, because the fused kernels give masks no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels.cpu.batches import Batch, batch_padding, make_batches
from msa_kernels.ragged import Padding


def _split(padded: Tensor, rows: list[int], batches: list[Batch]) -> list[Tensor]:
    """[p, heads, D] -> of each batch [r, heads, width, D]."""
    pieces = padded.split(rows) if len(rows) > 1 else [padded]  # its backward is a copy
    parts = zip(pieces, batches, strict=True)
    return [x.unflatten(0, (len(b.members), -1)).transpose(1, 2) for x, b in parts]


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, **mask) -> Tensor:
    """[r, H, t, D] -> packed rows [r*t, H, D]."""
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, **mask)
    return out.transpose(1, 2).flatten(0, 1)


def documents(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float) -> Tensor:
    """Packed sequences attend causally to themselves; differentiable. [N, H, D]."""
    sizes = [(n, n, 0) for n in cu.diff().tolist()]
    batches = make_batches(sizes, len(q) * max(1, len(q)), 1)
    if not batches:
        return q * 1
    padding, rows = batch_padding(cu, batches, 0)
    padded = [_split(padding.pad(x), rows, batches) for x in (q, k, v)]
    parts = [_attention(*x, scale, is_causal=True) for x in zip(*padded, strict=True)]
    return padding.unpad(_join(parts))


def _join(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@dataclass(frozen=True)
class Memory:
    """The chunks that contexts read; shapes as in context_attention."""

    k: Tensor  # [C, G, D]
    v: Tensor  # [C, G, D]
    index: Tensor  # [S]
    bias: Tensor | None  # [S]
    visible_from: Tensor | None  # [m]


def contexts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cus: tuple[Tensor, ...],
    memory: Memory,
    scale: float,
    budget: int,
) -> Tensor:
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
    if memory.bias is not None:
        gate = _gate_columns(entries.pad(memory.bias) / scale, q.dtype)
    extra = 0 if gate is None else gate.shape[1]
    chunks, width = memory.index[entries.rows], q.shape[2]
    q = rows.pad(q)
    if extra:
        q = F.pad(q, (0, extra), value=1.0)
    keys = _Keys.apply(k, memory.k, gate, own, chunks, batches, extra)
    values = _Keys.apply(v, memory.v, None, own, chunks, batches, extra)
    parts, unreal = [], (~entries.real).split(counts[2])
    for x in zip(_split(q, counts[0], batches), keys, values, batches, unreal, strict=True):
        hidden = _Hidden(*x[3:], cus, memory.visible_from)
        parts.append(_read_batch(*x[:3], scale, hidden, budget)[..., :width])
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


class _Keys(torch.autograd.Function):
    """Of each batch [r, G, s + keys, D + extra]: selected chunks with their gate, own tokens."""

    @staticmethod
    def forward(ctx, own, pooled, gate, padding: Padding, chunks, batches, extra: int):
        ctx.save_for_backward(chunks)
        ctx.layout = (padding, batches, pooled.shape, gate is not None)
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
        padding, batches, (count, groups, width), gated = ctx.layout
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


def _cuts(batches: list[Batch]):
    """(batch, its padded own rows, its padded entries)."""
    rows = slots = 0
    for batch in batches:
        r = len(batch.members)
        ends = rows + r * batch.keys, slots + r * batch.s
        yield batch, slice(rows, ends[0]), slice(slots, ends[1])
        rows, slots = ends


class _Hidden:
    """What the query rows of a batch do not see: padding, later tokens, the memory for the head."""

    def __init__(self, batch: Batch, unreal: Tensor, cus: tuple, visible_from: Tensor | None):
        members = torch.tensor(batch.members, device=unreal.device)
        self.batch, self.unreal = batch, unreal.view(len(members), 1, batch.s)
        self.lead = (cus[1].diff() - cus[0].diff())[members]
        self.visible_from = None if visible_from is None else visible_from[members]

    def mask(self, start: int, end: int, columns: int, like: Tensor) -> Tensor:
        """Additive [r, 1, rows, s + own columns] for query rows start..end-1."""
        row = torch.arange(start, end, device=like.device)
        key = torch.arange(columns - self.batch.s, device=like.device)
        later = key > (row + self.lead[:, None])[..., None]
        memory = self.unreal.expand(-1, end - start, -1)
        if self.visible_from is not None:
            memory = memory | (row < self.visible_from[:, None])[..., None]
        hidden = torch.cat([memory, later], 2)
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]


def _read_batch(q, k, v, scale: float, hidden: _Hidden, budget: int) -> Tensor:
    """q [r, H, t, D'], k, v [r, G, s+keys, D'] -> [r*t, H, D'], in steps whose masks fit."""
    batch, parts = hidden.batch, []
    step = max(1, budget // (len(q) * k.shape[2] * q.element_size()))
    for start in range(0, batch.t, step):
        end = min(start + step, batch.t)
        columns = batch.s + min(batch.keys, end + int(hidden.lead.max()))
        mask = hidden.mask(start, end, columns, q)
        seen = [x[:, :, :columns] for x in (k, v)]
        part = _attention(q[:, :, start:end], *seen, scale, attn_mask=mask)
        parts.append(part.unflatten(0, (len(q), -1)))
    return _join(parts, 1).flatten(0, 1)
