"""Chunk pooling: the mean over the real tokens of each chunk (SPEC section 2).

Forward reads every token row once and writes every chunk row once; backward the reverse.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.ragged import chunk_token_offsets
from msa_kernels.reference import accumulation_dtype

FEATURE_BLOCK = 128


@functools.cache
def _kernels():
    """(forward, backward) Triton kernels; made on first use, so that triton stays optional."""
    global tl  # Triton looks up the names of a kernel among its module's globals
    import triton
    import triton.language as tl

    # One program per (chunk, block of features). Loops run over the chunk's own tokens: no length
    # is a compile-time constant. Row offsets are 64-bit: tokens x features passes 2^31.

    @triton.jit
    def mean_forward(x, out, token_cu, features, BLOCK: tl.constexpr):
        chunk = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < features
        start = tl.load(token_cu + chunk)
        end = tl.load(token_cu + chunk + 1)
        row = x + start * features + column
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for _ in range(start, end):
            total += tl.load(row, mask=inside, other=0.0).to(tl.float32)
            row += features
        mean = total / (end - start).to(tl.float32)
        tl.store(out + chunk * features + column, mean.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def mean_backward(grad, grad_x, token_cu, features, BLOCK: tl.constexpr):
        chunk = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < features
        start = tl.load(token_cu + chunk)
        end = tl.load(token_cu + chunk + 1)
        share = tl.load(grad + chunk * features + column, mask=inside, other=0.0).to(tl.float32)
        share = (share / (end - start).to(tl.float32)).to(grad_x.dtype.element_ty)
        row = grad_x + start * features + column
        for _ in range(start, end):
            tl.store(row, share, mask=inside)
            row += features

    return mean_forward, mean_backward


def _launch(kernel: int, source: Tensor, out: Tensor, token_cu: Tensor) -> Tensor:
    chunks, features = len(token_cu) - 1, source.shape[1]
    if chunks and features:
        blocks = -(-features // FEATURE_BLOCK)
        grid = (chunks, blocks)
        _kernels()[kernel][grid](source, out, token_cu, features, BLOCK=FEATURE_BLOCK)
    return out


def _triton_forward(x: Tensor, token_cu: Tensor) -> Tensor:
    return _launch(0, x, x.new_empty(len(token_cu) - 1, x.shape[1]), token_cu)


def _triton_backward(grad: Tensor, token_cu: Tensor, tokens: int) -> Tensor:
    return _launch(1, grad, grad.new_empty(tokens, grad.shape[1]), token_cu)


def _torch_forward(x: Tensor, token_cu: Tensor) -> Tensor:
    counts = token_cu.diff()
    wide = x.to(accumulation_dtype(x))
    chunk = torch.arange(len(counts), device=x.device).repeat_interleave(counts)
    total = wide.new_zeros(len(counts), x.shape[1]).index_add_(0, chunk, wide)
    return (total / counts[:, None]).to(x.dtype)


def _torch_backward(grad: Tensor, token_cu: Tensor) -> Tensor:
    counts = token_cu.diff()
    share = (grad.to(accumulation_dtype(grad)) / counts[:, None]).to(grad.dtype)
    return share.repeat_interleave(counts, 0)


class _ChunkMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, token_cu: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(token_cu)
        ctx.tokens, ctx.backend = len(x), backend
        if backend == "triton":
            return _triton_forward(x.contiguous(), token_cu)
        return _torch_forward(x, token_cu)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (token_cu,) = ctx.saved_tensors
        if ctx.backend == "triton":
            return _triton_backward(grad.contiguous(), token_cu, ctx.tokens), None, None
        return _torch_backward(grad, token_cu), None, None


def chunk_mean(x: Tensor, cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Mean over the REAL tokens of each chunk (SPEC section 2, "chunks").

    x [N, ...] packed documents, cu_seqlens [n+1] int64, chunk_size P tokens -> [C, ...] in x's
    dtype, accumulated in float32; C = chunk_offsets(cu_seqlens, P)[-1]. Differentiable in x.
    Raises KernelError for other dtypes and for lengths that do not add up to N.
    """
    dispatch.check_floating("chunk_mean", x=x)
    dispatch.check_cumulative("chunk_mean", "cu_seqlens", cu_seqlens, len(x))
    dispatch.check_positive("chunk_mean", "chunk_size", chunk_size)
    backend = dispatch.choose("chunk_mean", x.device, x.dtype).backend
    token_cu = chunk_token_offsets(cu_seqlens, chunk_size)
    out = _ChunkMean.apply(x.flatten(1) if x.dim() > 1 else x[:, None], token_cu, backend)
    return out.unflatten(1, x.shape[1:]) if x.dim() > 1 else out[:, 0]
