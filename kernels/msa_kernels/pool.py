"""Chunk pooling: the mean over the real tokens of each chunk (SPEC section 2).

Forward reads every token row once and writes every chunk row once; backward the reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.cpu import pool as cpu
from msa_kernels.errors import KernelError
from msa_kernels.ragged import chunk_token_offsets
from msa_kernels.reference import accumulation_dtype


def chunk_mean(x: Tensor, cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Mean over the REAL tokens of each chunk (SPEC section 2, "chunks").

    x [N, ...] packed documents, cu_seqlens [n+1] int64, chunk_size P tokens -> [C, ...] in x's
    dtype, accumulated in float32; C = chunk_offsets(cu_seqlens, P)[-1]. Differentiable in x.
    Raises KernelError for other dtypes and for lengths that do not add up to N.
    """
    _check("chunk_mean", cu_seqlens, chunk_size, x=x)
    out, _ = _mean(x.flatten(1) if x.dim() > 1 else x[:, None], cu_seqlens, chunk_size)
    return out.unflatten(1, x.shape[1:]) if x.dim() > 1 else out[:, 0]


def pool_states(
    k: Tensor, v: Tensor, router_key: Tensor, cu_seqlens: Tensor, chunk_size: int, unit: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """What a router layer keeps of its documents, in one pass (SPEC section 2, "chunks").

    k, v, router_key [N, G, D] of one dtype -> chunk means [C, G, D] of each in that dtype; with
    `unit` each head of the pooled router key is made a unit vector, before it is rounded.
    Differentiable. Raises KernelError like chunk_mean.
    """
    _check("pool_states", cu_seqlens, chunk_size, k=k, v=v, router_key=router_key)
    if k.dim() != 3 or not k.shape == v.shape == router_key.shape:
        shapes = [tuple(x.shape) for x in (k, v, router_key)]
        raise KernelError(f"pool_states: k, v, router_key have shapes {shapes}; need [N, G, D]")
    flat = (x.flatten(1) for x in (k, v, router_key))
    outs = _states(*flat, cu_seqlens, chunk_size, k.shape[2] if unit else 0)[:3]
    return tuple(out.unflatten(1, k.shape[1:]) for out in outs)


def _check(operation: str, cu_seqlens: Tensor, chunk_size: int, **states: Tensor) -> None:
    dispatch.check_floating(operation, **states)
    if len({x.dtype for x in states.values()}) > 1:
        dtypes = {name: str(x.dtype) for name, x in states.items()}
        raise KernelError(f"{operation}: tensors have different dtypes: {dtypes}")
    tokens = len(next(iter(states.values())))
    dispatch.check_cumulative(operation, "cu_seqlens", cu_seqlens, tokens)
    dispatch.check_positive(operation, "chunk_size", chunk_size)


@torch.library.custom_op("msa_kernels::chunk_mean", mutates_args=())
def _mean(x: Tensor, cu_seqlens: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """[N, F] -> [C, F] and the chunks' cumulative tokens [C+1]."""
    token_cu = chunk_token_offsets(cu_seqlens, chunk_size)
    if dispatch.takes_triton("chunk_mean", x):
        from msa_kernels.gpu import pool as gpu

        return gpu.chunk_means([x.contiguous()], token_cu, None)[0][0], token_cu
    return cpu.chunk_mean(x, token_cu), token_cu


@_mean.register_fake
def _(x, cu_seqlens, chunk_size):
    chunks = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(chunks, x.shape[1]), cu_seqlens.new_empty(chunks + 1)


@torch.library.custom_op("msa_kernels::chunk_mean_backward", mutates_args=())
def _mean_backward(grad: Tensor, token_cu: Tensor, tokens: int) -> Tensor:
    if dispatch.takes_triton("chunk_mean", grad):
        from msa_kernels.gpu import pool as gpu

        return gpu.chunk_means_backward([grad.contiguous()], tokens, token_cu, None, None)[0]
    return cpu.chunk_mean_backward(grad, token_cu)


@_mean_backward.register_fake
def _(grad, token_cu, tokens):
    return grad.new_empty(tokens, grad.shape[1])


def _save_mean(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.tokens = inputs[0].shape[0]


def _differentiate_mean(ctx, grad, _):
    return _mean_backward(grad, *ctx.saved_tensors, ctx.tokens), None, None


_mean.register_autograd(_differentiate_mean, setup_context=_save_mean)


@torch.library.custom_op("msa_kernels::pool_states", mutates_args=())
def _states(
    k: Tensor, v: Tensor, router_key: Tensor, cu_seqlens: Tensor, chunk_size: int, unit_width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[C, F] three times, norms [C, F / unit_width] ([C, 0] without) and token_cu [C+1]."""
    token_cu = chunk_token_offsets(cu_seqlens, chunk_size)
    width = unit_width or None
    if dispatch.takes_triton("pool_states", k):
        from msa_kernels.gpu import pool as gpu

        given = [x.contiguous() for x in (k, v, router_key)]
        outs, norms = gpu.chunk_means(given, token_cu, width)
    else:
        wide = router_key.to(accumulation_dtype(router_key))
        outs, norms = [cpu.chunk_mean(x, token_cu) for x in (k, v, wide)], None
        if width is not None:
            heads = outs[2].unflatten(1, (-1, width))
            norms = heads.norm(dim=-1).clamp(min=1e-12)
            outs[2] = (heads / norms[..., None]).flatten(1)
        outs[2] = outs[2].to(router_key.dtype)
    if norms is None:
        norms = k.new_empty(len(outs[0]), 0, dtype=accumulation_dtype(k))
    return *outs, norms, token_cu


@_states.register_fake
def _(k, v, router_key, cu_seqlens, chunk_size, unit_width):
    chunks = torch.library.get_ctx().new_dynamic_size()
    outs = [x.new_empty(chunks, x.shape[1]) for x in (k, v, router_key)]
    heads = k.shape[1] // unit_width if unit_width else 0
    norms = k.new_empty(chunks, heads, dtype=accumulation_dtype(k))
    return *outs, norms, cu_seqlens.new_empty(chunks + 1)


@torch.library.custom_op("msa_kernels::pool_states_backward", mutates_args=())
def _states_backward(
    k: Tensor, v: Tensor, key: Tensor, unit: Tensor, norms: Tensor, token_cu: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [C, F] of the pooled states -> [N, F] three times. unit: the pooled router key."""
    if dispatch.takes_triton("pool_states", k):
        from msa_kernels.gpu import pool as gpu

        grads = [x.contiguous() for x in (k, v, key)]
        norms = norms if norms.shape[1] else None
        return tuple(gpu.chunk_means_backward(grads, tokens, token_cu, unit, norms))
    if norms.shape[1]:
        heads, along = (x.unflatten(1, (norms.shape[1], -1)).to(norms.dtype) for x in (key, unit))
        heads = heads - along * (heads * along).sum(-1, keepdim=True)
        key = (heads / norms[..., None]).flatten(1).to(key.dtype)
    return tuple(cpu.chunk_mean_backward(x, token_cu) for x in (k, v, key))


@_states_backward.register_fake
def _(k, v, key, unit, norms, token_cu, tokens):
    return tuple(x.new_empty(tokens, x.shape[1]) for x in (k, v, key))


def _save_states(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.tokens = inputs[0].shape[0]


def _differentiate_states(ctx, k, v, key, *_):
    return *_states_backward(k, v, key, *ctx.saved_tensors, ctx.tokens), None, None, None


_states.register_autograd(_differentiate_states, setup_context=_save_states)
