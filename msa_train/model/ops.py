"""A backbone's small operations: norm, SwiGLU, rotation, and cross entropy of a large vocabulary.

On a GPU Liger-Kernel fuses what it has a kernel for; elsewhere it is plain torch.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from msa_kernels import norm_rope
from msa_kernels.dispatch import on_its_device
from torch import Tensor, nn

from msa_train.model.rope import RopeScaling

_LIGER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _liger_installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def uses_liger(x: Tensor) -> bool:
    """Whether Liger's kernels take this tensor, here."""
    return x.is_cuda and x.dtype in _LIGER_DTYPES and _liger_installed()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; float32 inside for narrow x."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if uses_liger(x):
            return _fused_norm(x, self.weight, self.eps)
        if x.dtype in (torch.float16, torch.bfloat16):
            return _RMSNorm.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)
        return _RMSNorm.apply(x, self.weight, self.eps)


# Liger starts its kernels on the current device, wherever their tensors lie. (Its backward runs in
# autograd's thread, whose current device is theirs.)


@on_its_device
def _fused_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False)


@on_its_device
def _fused_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


class _RMSNorm(torch.autograd.Function):
    """With the backward written out: torch's own is eight elementwise passes on a CPU."""

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


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the two of equal shape."""
    return _fused_swiglu(gate, up) if uses_liger(gate) else F.silu(gate) * up


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin [N, D/2] in float32 for positions [N] (SPEC section 1), what YaRN multiplies
    queries and keys by included."""
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (half / head_dim)
    if scaling is None:
        angle = positions.float()[:, None] * frequency
        return angle.cos(), angle.sin()
    angle = positions.float()[:, None] * scaling.frequencies(frequency, theta)
    return angle.cos() * scaling.length_factor, angle.sin() * scaling.length_factor


def rotate_heads(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """q [N, H, D] and k [N, G, D] rotated by their positions, value i with i + D/2.

    norms: weights [D] of the RMS norm of each q and k head before that, for a backbone with one.
    """
    if norms is not None:
        return norm_rope(q, k, *norms, cos, sin, eps)
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    first, second = wide.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)


@on_its_device
def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross entropies of hidden [T, d] times an undivided weight [vocabulary, d], by Liger.

    The logits of all tokens are never held at once. labels [T]. A vocabulary that is split over
    ranks is Megatron's business.
    """
    if not len(labels):  # which Liger divides by; both keep a gradient, of zeros
        return F.linear(hidden, weight).float().sum()
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    given = (hidden, weight, labels, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(*given)[0]
