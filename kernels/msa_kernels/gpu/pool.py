"""Chunk means: one program per (chunk, block of features), of up to three tensors in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, ROWS = 128, 16


@triton.jit
def _pick(place, a, b, c):
    chosen = a
    if place == 1:
        chosen = b
    if place == 2:
        chosen = c
    return chosen


@triton.jit
def mean_forward(
    x0, x1, x2, out0, out1, out2, norms, token_cu, features, width, blocks,
    NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    tensor, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    x, out = _pick(tensor, x0, x1, x2), _pick(tensor, out0, out1, out2)
    place = tl.arange(0, BLOCK)
    column = block * width + place
    inside = (place < width) & (column < features)
    start, end = tl.load(token_cu + chunk), tl.load(token_cu + chunk + 1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(start, end, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < end)[:, None] & inside[None, :]
        tile = tl.load(x + row[:, None] * features + column[None, :], mask=mask, other=0.0)
        total += tl.sum(tile.to(tl.float32), 0)
    mean = total / (end - start).to(tl.float32)
    if NORM:  # noqa: SIM102  known when compiled, unlike the tensor
        if tensor == 2:
            norm = tl.maximum(tl.sqrt(tl.sum(mean * mean)), 1e-12)  # as normalize() does
            mean = mean / norm
            tl.store(norms + chunk * blocks + block, norm)
    tl.store(out + chunk * features + column, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def mean_backward(
    grad0, grad1, grad2, dx0, dx1, dx2, unit, norms, token_cu, features, width, blocks,
    NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    tensor, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    grad, dx = _pick(tensor, grad0, grad1, grad2), _pick(tensor, dx0, dx1, dx2)
    place = tl.arange(0, BLOCK)
    column = block * width + place
    inside = (place < width) & (column < features)
    start, end = tl.load(token_cu + chunk), tl.load(token_cu + chunk + 1)
    there = chunk * features + column
    share = tl.load(grad + there, mask=inside, other=0.0).to(tl.float32)
    if NORM:  # noqa: SIM102  known when compiled, unlike the tensor
        if tensor == 2:
            key = tl.load(unit + there, mask=inside, other=0.0).to(tl.float32)
            share = (share - key * tl.sum(share * key)) / tl.load(norms + chunk * blocks + block)
    share = (share / (end - start).to(tl.float32)).to(dx.dtype.element_ty)
    for first in range(start, end, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < end)[:, None] & inside[None, :]
        tile = tl.broadcast_to(share[None, :], [ROWS, BLOCK])
        tl.store(dx + row[:, None] * features + column[None, :], tile, mask=mask)


def chunk_means(xs: list[Tensor], token_cu: Tensor, unit_width: int | None):
    """Means of one to three tensors [N, F] -> ([C, F] each, norms [C, F / unit_width] or None).

    unit_width: the third is made unit vectors of this width.
    """
    outs = [x.new_empty(len(token_cu) - 1, x.shape[1]) for x in xs]
    width, blocks, block = _blocks(xs[0].shape[1], unit_width)
    norms = None
    if unit_width is not None:
        norms = xs[0].new_empty(len(outs[0]), blocks, dtype=torch.float32)
    if outs[0].numel():
        mean_forward[(len(outs[0]), len(xs) * blocks)](
            *_three(xs), *_three(outs), norms, token_cu, xs[0].shape[1], width, blocks,
            NORM=norms is not None, ROWS=ROWS, BLOCK=block,
        )  # fmt: skip
    return outs, norms


def chunk_means_backward(
    grads: list[Tensor], tokens: int, token_cu: Tensor, unit: Tensor | None, norms: Tensor | None
) -> list[Tensor]:
    """[C, F] each -> [N, F] each; unit [C, F] and norms as the forward pass returned them."""
    dxs = [grad.new_empty(tokens, grad.shape[1]) for grad in grads]
    features = grads[0].shape[1]
    width, blocks, block = _blocks(features, None if norms is None else features // norms.shape[1])
    if grads[0].numel():
        mean_backward[(len(grads[0]), len(grads) * blocks)](
            *_three(grads), *_three(dxs), unit, norms, token_cu, features, width, blocks,
            NORM=norms is not None, ROWS=ROWS, BLOCK=block,
        )  # fmt: skip
    return dxs


def _blocks(features: int, unit_width: int | None) -> tuple[int, int, int]:
    """(features of a block, blocks, the power of two that holds one)."""
    width = BLOCK if unit_width is None else unit_width
    return width, -(-features // width), triton.next_power_of_2(width)


def _three(tensors: list[Tensor]) -> list[Tensor]:
    return (tensors + tensors[-1:] * 2)[:3]
