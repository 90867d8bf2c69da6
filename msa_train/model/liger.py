"""What Liger-Kernel fuses on a GPU, and plain torch elsewhere: its kernels need CUDA tensors."""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def uses_liger(x: Tensor) -> bool:
    """Whether Liger's kernels take this tensor, here."""
    return x.is_cuda and x.dtype in _DTYPES and _installed()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """By Liger, in float32 inside; [.., d] of a tensor for which uses_liger is true."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the two of equal shape."""
    if not uses_liger(gate):
        return F.silu(gate) * up
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross entropies of hidden [T, d] times an undivided weight [vocabulary, d], by Liger.

    The logits of all tokens are never held at once. labels [T]. A vocabulary that is split over
    ranks is Megatron's business.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    given = (hidden, weight, labels, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(*given)[0]
