"""Chunk means in torch: one pass over the tokens, accumulated in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels.reference import accumulation_dtype


def chunk_mean(x: Tensor, token_cu: Tensor) -> Tensor:
    """[N, F], token_cu [C+1] -> [C, F]."""
    counts = token_cu.diff()
    wide = x.to(accumulation_dtype(x))
    chunk = torch.arange(len(counts), device=x.device).repeat_interleave(counts)
    total = wide.new_zeros(len(counts), x.shape[1]).index_add_(0, chunk, wide)
    return (total / counts[:, None]).to(x.dtype)


def chunk_mean_backward(grad: Tensor, token_cu: Tensor) -> Tensor:
    """[C, F] -> [N, F]."""
    counts = token_cu.diff()
    share = (grad.to(accumulation_dtype(grad)) / counts[:, None]).to(grad.dtype)
    return share.repeat_interleave(counts, 0)
