"""RMS norm and rotation of query and key heads in one pass (SPEC sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msa_kernels import dispatch
from msa_kernels.errors import KernelError
from msa_kernels.reference import accumulation_dtype

CACHE_BYTES = 1 << 20  # of a tile in torch (measured)

# In torch: tiles of tokens that stay in the cache through all steps; no more than a tile is ever
# held in the wide dtype. The backward pass is written out.


def _rotated_in_torch(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x [N, heads, D], cos, sin [N, 1, D/2] -> (rotated [N, heads, D], scale [N, heads, 1])."""
    out, weight = x.new_empty(x.shape), weight.to(wide)
    scale = torch.empty(*x.shape[:2], 1, dtype=wide, device=x.device)
    for tile in _tiles(x, wide):
        part = x[tile].to(wide)
        length = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
        own = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps), out=scale[tile])
        _rotate((part * own).mul_(weight), cos[tile], sin[tile], 1.0, out[tile])
    return out, scale


def _gradients_in_torch(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and the weight; scale as the forward pass returned it."""
    wide = scale.dtype
    dx, factor = x.new_empty(x.shape), weight.to(wide)
    d_weight = torch.zeros_like(factor)
    for tile in _tiles(x, wide):
        part, own = x[tile].to(wide), scale[tile]
        back = torch.empty_like(part)
        _rotate(grad[tile].to(wide), cos[tile], sin[tile], -1.0, back)
        product = back * part
        d_weight += torch.einsum("nd,n->d", product.flatten(0, -2), own.flatten())
        # d scale / d x = -scale^3 x / D
        along = (product @ factor)[..., None] * (own.pow(3) / -x.shape[-1])
        dx[tile] = back.mul_(factor).mul_(own).addcmul_(part, along)
    return dx, d_weight.to(weight.dtype)


def _tiles(x: Tensor, wide: torch.dtype) -> Iterator[slice]:
    step = max(1, CACHE_BYTES // max(1, x[:1].numel() * wide.itemsize))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float, out: Tensor) -> None:
    a, b = x.chunk(2, dim=-1)
    first, second = out.chunk(2, dim=-1)
    if out.dtype == x.dtype:
        torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
        torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
    else:
        first.copy_((a * cos).addcmul_(b, sin, value=-direction))
        second.copy_((b * cos).addcmul_(a, sin, value=direction))


# The operator and its gradient.


@dispatch.operator("norm_rope")
def _norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotated q and k, then 1 / root mean square of their heads: of the torch path, else [0]."""
    if dispatch.takes_triton("norm_rope", q, k):
        from msa_kernels import norm_rope_triton

        given = q, k, q_weight, k_weight, cos, sin, eps
        return *norm_rope_triton.forward(*given), q.new_empty(0), q.new_empty(0)
    wide, tables = accumulation_dtype(q), (cos[:, None], sin[:, None])
    q_out, q_scale = _rotated_in_torch(q, q_weight, *tables, eps, wide)
    k_out, k_scale = _rotated_in_torch(k, k_weight, *tables, eps, wide)
    return q_out, k_out, q_scale, k_scale


@torch.library.register_fake(_norm_rope)
def _(q, k, q_weight, k_weight, cos, sin, eps):
    outs = [x.new_empty(x.shape) for x in (q, k)]
    if dispatch.takes_triton("norm_rope", q, k):
        return *outs, q.new_empty(0), q.new_empty(0)
    wide = accumulation_dtype(q)
    return *outs, *(x.new_empty(*x.shape[:2], 1, dtype=wide) for x in (q, k))


@dispatch.operator("norm_rope_backward", learns=False)
def _backward(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor,
    q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if dispatch.takes_triton("norm_rope", q, k):
        from msa_kernels import norm_rope_triton

        return norm_rope_triton.backward(q_grad, k_grad, q, k, q_weight, k_weight, cos, sin, eps)
    tables = cos[:, None], sin[:, None]
    d_q, d_q_weight = _gradients_in_torch(q_grad, q, q_weight, q_scale, *tables)
    d_k, d_k_weight = _gradients_in_torch(k_grad, k, k_weight, k_scale, *tables)
    return d_q, d_k, d_q_weight, d_k_weight


@torch.library.register_fake(_backward)
def _(q_grad, k_grad, q, k, q_weight, k_weight, *_):
    return tuple(x.new_empty(x.shape) for x in (q, k, q_weight, k_weight))


def _save(ctx, inputs, output):
    q, k, q_weight, k_weight, cos, sin, ctx.eps = inputs
    ctx.save_for_backward(q, k, q_weight, k_weight, *output[2:], cos, sin)


def _differentiate(ctx, q_grad, k_grad, *_):
    return *_backward(q_grad, k_grad, *ctx.saved_tensors, ctx.eps), None, None, None


torch.library.register_autograd(_norm_rope, _differentiate, setup_context=_save)


def norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Each head x of q and k becomes rotate(x / sqrt(mean(x^2) + eps) * weight).

    q [N, H, D], k [N, G, D], weights [D], cos, sin [N, D/2] float32 of each token's own position;
    the rotation pairs value i with i + D/2. Returns both in their dtype, computed in float32.
    Differentiable in q, k and the weights. Raises KernelError for tensors that do not fit.
    """
    heads = {"q": q, "k": k, "q_weight": q_weight, "k_weight": k_weight}
    dispatch.check_floating("norm_rope", **heads, cos=cos, sin=sin)
    tables = (len(q), q.shape[-1] // 2)
    if q.dim() != 3 or k.dim() != 3 or len(q) != len(k) or q.shape[2] != k.shape[2]:
        shapes = [tuple(x.shape) for x in (q, k)]
        raise KernelError(f"norm_rope: q and k have shapes {shapes}; need [N, H, D], [N, G, D]")
    if q.shape[2] % 2 or cos.shape != tables or sin.shape != tables:
        raise KernelError(
            f"norm_rope: cos and sin have shapes {tuple(cos.shape)}, {tuple(sin.shape)} for heads "
            f"of {q.shape[2]}; need [N, D/2] and an even D"
        )
    if not q_weight.shape == k_weight.shape == q.shape[2:]:
        shapes = tuple(q_weight.shape), tuple(k_weight.shape)
        raise KernelError(f"norm_rope: weights have shapes {shapes}; need [{q.shape[2]}] each")
    dtypes = q.dtype, k.dtype, q_weight.dtype, k_weight.dtype, cos.dtype, sin.dtype
    if any(one != other for one, other in zip(dtypes[::2], dtypes[1::2], strict=True)):
        raise KernelError(
            f"norm_rope: {', '.join(heads)}, cos, sin are {', '.join(map(str, dtypes))}; "
            "need one for each pair"
        )
    with dispatch.without_autocast(q.device):
        return _norm_rope(q, k, q_weight, k_weight, cos, sin, eps)[:2]
