"""Chunk pooling: the mean over the real tokens of each chunk (SPEC section 2).

Forward reads every token row once and writes every chunk row once; backward the reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.ragged import chunk_token_offsets, segment_ids
from msa_kernels.reference import accumulation_dtype

# In torch: one pass over the tokens, accumulated in float32.


def mean_in_torch(x: Tensor, token_cu: Tensor) -> Tensor:
    """[N, F], token_cu [C+1] -> [C, F]."""
    counts = token_cu.diff()
    wide = x.to(accumulation_dtype(x))
    total = wide.new_zeros(len(counts), x.shape[1]).index_add_(0, segment_ids(token_cu), wide)
    return (total / counts[:, None]).to(x.dtype)


def mean_backward_in_torch(grad: Tensor, token_cu: Tensor) -> Tensor:
    """[C, F] -> [N, F]."""
    counts = token_cu.diff()
    share = (grad.to(accumulation_dtype(grad)) / counts[:, None]).to(grad.dtype)
    return share.repeat_interleave(counts, 0)


# The operator and its gradient.


@dispatch.operator("chunk_token_offsets", learns=False)
def _offsets(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """[n+1] -> [C+1]; an operator because its size depends on what is in the tensor."""
    return chunk_token_offsets(cu_seqlens, chunk_size)


@torch.library.register_fake(_offsets)
def _(cu_seqlens, chunk_size):
    return cu_seqlens.new_empty(torch.library.get_ctx().new_dynamic_size())  # C+1


@dispatch.operator("chunk_mean")
def _mean(x: Tensor, token_cu: Tensor) -> Tensor:
    """[N, F], token_cu [C+1] -> [C, F]."""
    if dispatch.takes_triton("chunk_mean", x):
        from msa_kernels import pool_triton

        return pool_triton.chunk_mean(x, token_cu)
    return mean_in_torch(x, token_cu)


@torch.library.register_fake(_mean)
def _(x, token_cu):
    return x.new_empty(token_cu.shape[0] - 1, x.shape[1])


@dispatch.operator("chunk_mean_backward", learns=False)
def _mean_backward(grad: Tensor, token_cu: Tensor, tokens: int) -> Tensor:
    if dispatch.takes_triton("chunk_mean", grad):
        from msa_kernels import pool_triton

        return pool_triton.chunk_mean_backward(grad, token_cu, tokens)
    return mean_backward_in_torch(grad, token_cu)


@torch.library.register_fake(_mean_backward)
def _(grad, token_cu, tokens):
    return grad.new_empty(tokens, grad.shape[1])


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.tokens = inputs[0].shape[0]


def _differentiate(ctx, grad):
    return _mean_backward(grad, *ctx.saved_tensors, ctx.tokens), None


torch.library.register_autograd(_mean, _differentiate, setup_context=_save)


def chunk_mean(
    x: Tensor, cu_seqlens: Tensor, chunk_size: int, token_cu: Tensor | None = None
) -> Tensor:
    """Mean over the REAL tokens of each chunk (SPEC section 2, "Chunks").

    x [N, ...] packed documents, cu_seqlens [n+1] int64, chunk_size P tokens -> [C, ...] in x's
    dtype, accumulated in float32; C = chunk_offsets(cu_seqlens, P)[-1]. Differentiable in x.
    token_cu [C+1]: chunk_token_offsets of both, where they are known; on a GPU the host would wait
    for their number. Raises KernelError for other dtypes and for lengths that do not add up to N.
    """
    dispatch.check_floating("chunk_mean", x=x)
    dispatch.check_cumulative("chunk_mean", "cu_seqlens", cu_seqlens, len(x))
    dispatch.check_positive("chunk_mean", "chunk_size", chunk_size)
    if token_cu is None:
        token_cu = _offsets(cu_seqlens, chunk_size)
    else:
        dispatch.check_cumulative("chunk_mean", "token_cu", token_cu, len(x))
    out = _mean(x.flatten(1) if x.dim() > 1 else x[:, None], token_cu)
    return out.unflatten(1, x.shape[1:]) if x.dim() > 1 else out[:, 0]
