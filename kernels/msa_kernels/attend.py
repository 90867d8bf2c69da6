"""Attention of the two streams (SPEC sections 1 and 2).

On CUDA one Triton kernel reads selected chunks where they lie; it is the documents' attention too,
as contexts that select nothing. Elsewhere sequences of similar length form padded batches for
torch's own fused attention. Nothing quadratic in a length is kept for backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.cpu import attend as cpu
from msa_kernels.errors import KernelError

SCRATCH_MB = 64.0


def document_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Causal attention inside each packed document (SPEC section 1).

    q [N, H, D], k, v [N, G, D] of one dtype, cu_seqlens [n+1] -> [N, H, D]; head i reads kv head
    i // (H/G). Differentiable in q, k, v. Raises KernelError for tensors that do not fit together.
    """
    _check("document_attention", q, k, v, cu_seqlens, cu_seqlens)
    if not dispatch.takes_triton("document_attention", q, k, v):
        return cpu.documents(q, k, v, cu_seqlens, scale)
    nothing = q.new_empty(0, *k.shape[1:]), cu_seqlens.new_empty(0), torch.zeros_like(cu_seqlens)
    states, index, index_cu = nothing
    cus = cu_seqlens, cu_seqlens
    return _attend(q, k, v, *cus, states, states, index, index_cu, None, None, scale)[0]


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_cu: Tensor,
    k_cu: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    index: Tensor,
    index_cu: Tensor,
    bias: Tensor | None,
    memory_from: Tensor | None,
    scale: float,
    scratch_mb: float = SCRATCH_MB,
) -> Tensor:
    """Each context attends to its selected pooled chunks and its own tokens (SPEC section 2).

    q [Nq, H, D], k, v [Nk, G, D]; q_cu, k_cu [m+1]: a context's q rows are its LAST tokens, each
    sees its own and earlier keys. pooled_k, pooled_v [C, G, D]; index [S], index_cu [m+1]: the
    chunks each context reads; bias [S] (the gate, SPEC section 3) is added to an entry's logits
    for all heads; q rows before memory_from [m] (counted within the context's q rows) see no
    chunk. Returns [Nq, H, D]. Differentiable in q, k, v, pooled_k, pooled_v, bias; gradients are
    the same in every run. scratch_mb bounds the masks of the torch path. Raises KernelError for
    tensors that do not fit together.
    """
    _check("context_attention", q, k, v, q_cu, k_cu)
    _check_memory(q, k, q_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from)
    if dispatch.may_look(q_cu) and bool((q_cu.diff() > k_cu.diff()).any()):
        raise KernelError("context_attention: a context has more q rows than keys (q_cu, k_cu)")
    if not dispatch.takes_triton("context_attention", q, k, v, pooled_k, pooled_v):
        budget = int(scratch_mb * (1 << 20))
        memory = cpu.Memory(pooled_k, pooled_v, index, bias, memory_from)
        return cpu.contexts(q, k, v, (q_cu, k_cu, index_cu), memory, scale, budget)
    entries = (index, index_cu, bias, memory_from)
    return _attend(q, k, v, q_cu, k_cu, pooled_k, pooled_v, *entries, scale)[0]


def _check_memory(q, k, q_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from) -> None:
    name = "context_attention"
    floating = {"pooled_k": pooled_k, "pooled_v": pooled_v, "bias": bias}
    dispatch.check_floating(name, q=q, **floating)
    if pooled_k.shape != pooled_v.shape or pooled_k.shape[1:] != k.shape[1:]:
        shapes = tuple(pooled_k.shape), tuple(pooled_v.shape)
        raise KernelError(
            f"{name}: pooled_k, pooled_v have shapes {shapes}; need [C, *{tuple(k.shape[1:])}]"
        )
    dispatch.check_numbers(name, "index", index)
    dispatch.check_cumulative(name, "index_cu", index_cu, len(index))
    if bias is not None and bias.shape != index.shape:
        raise KernelError(f"{name}: bias has shape {tuple(bias.shape)}; need [{len(index)}]")
    if memory_from is not None:
        dispatch.check_numbers(name, "memory_from", memory_from, len(q_cu) - 1)


def _check(operation: str, q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor, k_cu: Tensor) -> None:
    dispatch.check_floating(operation, q=q, k=k, v=v)
    dispatch.check_heads(operation, q, k, v)
    dispatch.check_cumulative(operation, "q_cu", q_cu, len(q))
    dispatch.check_cumulative(operation, "k_cu", k_cu, len(k))
    if len({x.dtype for x in (q, k, v)}) > 1:
        raise KernelError(f"{operation}: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; need one")


@torch.library.custom_op("msa_kernels::context_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor, k_cu: Tensor, pooled_k: Tensor,
    pooled_v: Tensor, index: Tensor, index_cu: Tensor, bias: Tensor | None,
    memory_from: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[Nq, H, D] and the logarithms of the softmax sums [Nq, H], by the Triton kernel."""
    from msa_kernels.gpu import attend as gpu

    head = torch.zeros_like(q_cu[1:]) if memory_from is None else memory_from
    states = (x.contiguous() for x in (q, k, v, pooled_k, pooled_v))
    bias = None if bias is None else bias.contiguous()
    return gpu.forward(*states, index, bias, head, (q_cu, k_cu, index_cu), scale)


@_attend.register_fake
def _(q, k, v, q_cu, k_cu, pooled_k, pooled_v, index, index_cu, bias, memory_from, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("msa_kernels::context_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, q_cu: Tensor,
    k_cu: Tensor, pooled_k: Tensor, pooled_v: Tensor, index: Tensor, index_cu: Tensor,
    bias: Tensor | None, memory_from: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, pooled_k, pooled_v and bias ([0] without one)."""
    from msa_kernels.gpu import attend_backward as gpu

    head = torch.zeros_like(q_cu[1:]) if memory_from is None else memory_from
    given = (x.contiguous() for x in (grad, out, lse, q, k, v, pooled_k, pooled_v))
    bias = None if bias is None else bias.contiguous()
    *states, d_bias = gpu.backward(*given, index, bias, head, (q_cu, k_cu, index_cu), scale)
    return *states, q.new_empty(0) if bias is None else d_bias


@_attend_backward.register_fake
def _(grad, out, lse, q, k, v, q_cu, k_cu, pooled_k, pooled_v, index, index_cu, bias, *_):
    states = (x.new_empty(x.shape) for x in (q, k, v, pooled_k, pooled_v))
    return *states, q.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx, grad, _):
    *states, d_bias = _attend_backward(grad, *ctx.saved_tensors, ctx.scale)
    d_q, d_k, d_v, d_pooled_k, d_pooled_v = states
    d_bias = None if ctx.saved_tensors[11] is None else d_bias
    return d_q, d_k, d_v, None, None, d_pooled_k, d_pooled_v, None, None, d_bias, None, None


_attend.register_autograd(_differentiate, setup_context=_save)
