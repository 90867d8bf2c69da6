"""Router keys in 8 bits: one program per (tile of chunks, head)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.dispatch import launcher

CHUNKS = 32  # of a tile


@triton.jit(do_not_specialize=["chunks"])
def quantise_heads(
    keys, values, scales, squares, lengths, chunks, heads, head_dim, largest,
    WHOLE: tl.constexpr, CHUNKS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """squares, lengths [C, heads]: squared error and squared norm of each head."""
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    head = tl.program_id(1)
    place = tl.arange(0, D)
    at = (chunk[:, None] * heads + head) * head_dim + place[None, :]
    real = chunk < chunks
    mask = real[:, None] & (place < head_dim)[None, :]
    key = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(key), 1) / largest
    scale = tl.where(scale == 0, 1.0, scale)
    value = key / scale[:, None]
    if WHOLE:
        value = tl.floor(value + 0.5)
    narrow = value.to(values.dtype.element_ty)
    error = key - narrow.to(tl.float32) * scale[:, None]
    own = chunk * heads + head
    tl.store(values + at, narrow, mask=mask)
    tl.store(scales + own, scale, mask=real)
    tl.store(squares + own, tl.sum(error * error, 1), mask=real)
    tl.store(lengths + own, tl.sum(key * key, 1), mask=real)


@launcher
def quantise(
    keys: Tensor, heads: int, dtype: torch.dtype, largest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """keys [C, V] -> values [C, V], scales, squared errors and squared norms [C, heads]."""
    chunks, head_dim = len(keys), keys.shape[1] // heads
    values = torch.empty(keys.shape, dtype=dtype, device=keys.device)
    new = {"dtype": torch.float32, "device": keys.device}
    scales, squares, lengths = (torch.empty(chunks, heads, **new) for _ in range(3))
    if keys.numel():
        quantise_heads[(triton.cdiv(chunks, CHUNKS), heads)](
            keys, values, scales, squares, lengths, chunks, heads, head_dim, largest,
            WHOLE=not dtype.is_floating_point, CHUNKS=CHUNKS, D=triton.next_power_of_2(head_dim),
        )  # fmt: skip
    return values, scales, squares, lengths
