"""Rotary position embedding, rotate-half form, with a position per token (SPEC section 1)."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, D/2] in float32 for positions [N]."""
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (half / head_dim)
    angle = positions.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [N, heads, D] by tables [N, D/2]; computed in float32 or better, x's dtype out."""
    return _Rotate.apply(x, cos[:, None], sin[:, None])


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing but the tables is kept for it."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _rotated(grad, *ctx.saved_tensors, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    wide = torch.promote_types(x.dtype, cos.dtype)
    a, b = x.to(wide).chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=wide, device=x.device)
    first, second = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
    return out.to(x.dtype)
