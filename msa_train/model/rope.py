"""Rotary position embedding, rotate-half form, with a position per token (SPEC section 1)."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, D/2] in float32 for positions [N]."""
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (half / head_dim)
    angle = positions.float()[:, None] * frequency
    return angle.cos(), angle.sin()
