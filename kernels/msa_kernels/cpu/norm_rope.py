"""Normalised and rotated heads in torch, the backward pass written out.

In tiles of tokens that the cache holds through all steps, and of them alone in the wide dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CACHE_BYTES = 1 << 20  # of a tile (measured)


def forward(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x [N, heads, D], cos, sin [N, 1, D/2] -> (rotated [N, heads, D], scale [N, heads, 1])."""
    out, weight = torch.empty_like(x), weight.to(wide)
    scale = torch.empty(*x.shape[:2], 1, dtype=wide, device=x.device)
    for tile in _tiles(x, wide):
        part = x[tile].to(wide)
        length = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
        own = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps), out=scale[tile])
        _rotate((part * own).mul_(weight), cos[tile], sin[tile], 1.0, out[tile])
    return out, scale


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and the weight; scale as the forward pass returned it."""
    wide = scale.dtype
    dx, weight = torch.empty_like(x), weight.to(wide)
    d_weight = torch.zeros_like(weight)
    for tile in _tiles(x, wide):
        part, own = x[tile].to(wide), scale[tile]
        back = torch.empty_like(part)
        _rotate(grad[tile].to(wide), cos[tile], sin[tile], -1.0, back)
        product = back * part
        d_weight += torch.einsum("nd,n->d", product.flatten(0, -2), own.flatten())
        # d scale / d x = -scale^3 x / D
        along = (product @ weight)[..., None] * (own.pow(3) / -x.shape[-1])
        dx[tile] = back.mul_(weight).mul_(own).addcmul_(part, along)
    return dx, d_weight


def _tiles(x: Tensor, wide: torch.dtype) -> Iterator[slice]:
    step = max(1, CACHE_BYTES // max(1, x[:1].numel() * wide.itemsize))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float, out: Tensor) -> None:
    a, b = x.chunk(2, dim=-1)
    first, second = out.chunk(2, dim=-1)
    if out.dtype == x.dtype:
        torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
        torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
    else:
        first.copy_((a * cos).addcmul_(b, sin, value=-direction))
        second.copy_((b * cos).addcmul_(a, sin, value=direction))
