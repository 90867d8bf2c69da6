"""Attention of contexts over selected chunks, and of documents over themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_kernels import chunk_mean, context_attention, document_attention
from msa_kernels.bench import published
from msa_kernels.bench.cases import Case
from msa_kernels.bench.geometry import (
    CHUNK,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    SCALE,
    draw,
    every,
)
from msa_kernels.bench.measure import device, size
from msa_kernels.ragged import chunk_token_offsets, cumulative

DOCUMENTS, CHUNKS_EACH, SELECTED, CONTEXTS, TOKENS = 32, 8, 16, 16, 64


def cases() -> Iterator[Case]:
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield _pool_and_attend(dtype)
    if device().type == "cuda":
        yield _documents([512] * 128, dtype)  # 64K memory tokens
    yield _documents([64] * 128, dtype)
    yield _documents(torch.randint(16, 129, (128,)).tolist(), dtype)


def _pool_and_attend(dtype: torch.dtype) -> Case:
    """Both from the token states of a shared bank to the contexts' outputs."""
    length = CHUNKS_EACH * CHUNK
    k, v = (draw(DOCUMENTS * length, KV_HEADS, HEAD_DIM, dtype=dtype, learns=True) for _ in "kv")
    own = [
        draw(CONTEXTS, TOKENS, heads, HEAD_DIM, dtype=dtype, learns=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    doc_cu = every(DOCUMENTS, length)
    token_cu = chunk_token_offsets(doc_cu, CHUNK)
    chosen = torch.stack([torch.randperm(DOCUMENTS, device=device())[:SELECTED] for _ in own[0]])
    index = chosen.sort(1).values[..., None] * CHUNKS_EACH
    index = (index + torch.arange(CHUNKS_EACH, device=device())).flatten(1)
    ctx_cu, index_cu = every(CONTEXTS, TOKENS), every(CONTEXTS, index.shape[1])

    def ours() -> Tensor:
        pooled = (chunk_mean(x, doc_cu, CHUNK) for x in (k, v))
        flat = (x.flatten(0, 1) for x in own)
        return context_attention(
            *flat, ctx_cu, ctx_cu, *pooled, index.flatten(), index_cu, None, None, SCALE
        )

    def theirs() -> Tensor:
        pooled = (
            published.chunk_means(x.flatten(1), token_cu).unflatten(1, (KV_HEADS, -1))
            for x in (k, v)
        )
        return published.gathered_attention(*own, *pooled, index, SCALE).flatten(0, 1)

    keys = index.shape[1] + TOKENS / 2
    return Case(
        "pool+attend",
        {
            "contexts": CONTEXTS,
            "tokens": TOKENS,
            "selected_chunks": index.shape[1],
            "memory_tokens": len(k),
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
        },
        dtype,
        ours,
        {"published": theirs},
        size(k, v, *own),
        4.0 * CONTEXTS * TOKENS * keys * HEADS * HEAD_DIM,
        [k, v, *own],
        together=True,
    )


def _documents(lengths: list[int], dtype: torch.dtype) -> Case:
    cu = cumulative(torch.tensor(lengths, device=device()))
    states = [
        draw(sum(lengths), heads, HEAD_DIM, dtype=dtype, learns=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    shape = {"documents": len(lengths), "tokens": max(lengths), "memory_tokens": sum(lengths)}
    return Case(
        "document_attention",
        {**shape, "heads": HEADS, "kv_heads": KV_HEADS},
        dtype,
        lambda: document_attention(*states, cu, SCALE),
        _peers(states, cu, lengths),
        2.0 * size(*states),
        2.0 * sum(n * n for n in lengths) * HEADS * HEAD_DIM,
        states,
        backward_factor=2.5,
        together=True,
    )


def _peers(states: list[Tensor], cu: Tensor, lengths: list[int]) -> dict[str, Callable[[], Tensor]]:
    """torch's attention over documents padded to the longest; flash-attn where it is installed."""
    place = torch.arange(max(lengths), device=cu.device)
    real = place < cu.diff()[:, None]
    rows = (cu[:-1, None] + place).clamp(max=sum(lengths) - 1)
    ragged = not bool(real.all())

    def padded() -> Tensor:
        batch = (x[rows] if ragged else x.unflatten(0, rows.shape) for x in states)
        q, k, v = (x.transpose(1, 2) for x in batch)
        out = F.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True, is_causal=True)
        out = out.transpose(1, 2)
        return out[real] if ragged else out.flatten(0, 1)

    peers = {"sdpa, padded" if ragged else "sdpa, equal lengths": padded}
    if states[0].is_cuda and importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        bounds = (cu.int(), cu.int(), max(lengths), max(lengths))
        peers["flash-attn"] = lambda: flash_attn_varlen_func(
            *states, *bounds, softmax_scale=SCALE, causal=True
        )
    return peers
