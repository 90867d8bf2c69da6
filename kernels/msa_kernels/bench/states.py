"""Pooling, and norm with rotation: what is made of every token's states."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msa_kernels import norm_rope, pool_states, reference
from msa_kernels.bench import published
from msa_kernels.bench.cases import Case, beside_reference
from msa_kernels.bench.geometry import CHUNK, HEAD_DIM, HEADS, KV_HEADS, draw, every
from msa_kernels.bench.measure import device, size
from msa_kernels.ragged import chunk_token_offsets


def cases() -> Iterator[Case]:
    tokens = 65_536 if device().type == "cuda" else 16_384
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield from _pool(tokens, dtype)
    yield _norm_rope(tokens // 4, dtype)


def _pool(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    states = [draw(tokens, KV_HEADS, HEAD_DIM, dtype=dtype, learns=True) for _ in range(3)]
    documents = every(tokens // (8 * CHUNK), 8 * CHUNK)
    token_cu = chunk_token_offsets(documents, CHUNK)

    def theirs() -> tuple[Tensor, ...]:
        k, v, key = (published.chunk_means(x.flatten(1), token_cu) for x in states)
        return k, v, torch.nn.functional.normalize(key.unflatten(1, (KV_HEADS, -1)), dim=-1)

    case = Case(
        "pool",
        {"tokens": tokens, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM},
        dtype,
        lambda: pool_states(*states, documents, CHUNK),
        {"published": theirs},
        size(*states),
        3.0 * states[0].numel(),
        states,
        backward_factor=1.0,
    )
    yield case
    yield beside_reference(case, lambda: reference.pool_states(*states, documents, CHUNK))


def _norm_rope(tokens: int, dtype: torch.dtype) -> Case:
    q, k = (draw(tokens, heads, HEAD_DIM, dtype=dtype, learns=True) for heads in (HEADS, KV_HEADS))
    weights = [draw(HEAD_DIM, learns=True) for _ in range(2)]
    angle = torch.rand(tokens, HEAD_DIM // 2, device=device())
    given = (q, k, *weights, angle.cos(), angle.sin(), 1e-6)
    return Case(
        "norm_rope",
        {"tokens": tokens, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM},
        dtype,
        lambda: norm_rope(*given),
        {"reference": lambda: reference.norm_rope(*given)},
        2.0 * size(q, k),
        10.0 * (q.numel() + k.numel()),
        [q, k, *weights],
        backward_factor=1.5,
    )
