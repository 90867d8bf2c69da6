"""Normalised and rotated heads in torch, the backward pass written out."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x [N, heads, D], cos, sin [N, 1, D/2] -> (rotated [N, heads, D], scale [N, heads, 1])."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return rotated((x * scale).mul_(weight), cos, sin, 1.0), scale


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and the weight."""
    grad = rotated(grad, cos, sin, -1.0)
    product = grad * x
    d_weight = torch.einsum("nd,n->d", product.flatten(0, -2), scale.flatten())
    # d scale / d x = -scale^3 x / D
    along = (product @ weight)[..., None] * (scale.pow(3) / -x.shape[-1])
    return (grad * weight).mul_(scale).addcmul_(x, along), d_weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    first, second = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
    return out
