"""RMSNorm with its backward written out: torch's own is eight elementwise passes on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msa_train.model.liger import rms_norm, uses_liger


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; float32 inside for narrow x."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if uses_liger(x):
            return rms_norm(x, self.weight, self.eps)
        if x.dtype in (torch.float16, torch.bfloat16):
            return _RMSNorm.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        product = grad * x
        d_weight = torch.einsum("nd,n->d", product.flatten(0, -2), scale.flatten())
        # d scale / d x = -scale^3 x / D
        along = (product @ weight)[..., None] * (scale.pow(3) / -x.shape[-1])
        return (grad * weight).mul_(scale).addcmul_(x, along), d_weight, None
