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
from msa_kernels.ragged import chunk_token_offsets

DOCUMENTS, CHUNKS_EACH, SELECTED, CONTEXTS, TOKENS = 32, 8, 16, 16, 64


def cases() -> Iterator[Case]:
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield _pool_and_attend(dtype)
    if device().type == "cuda":
        yield _documents(128, 512, dtype)  # 64K memory tokens
    yield _documents(128, 64, dtype)


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


def _documents(count: int, length: int, dtype: torch.dtype) -> Case:
    cu = every(count, length)
    states = [
        draw(count * length, heads, HEAD_DIM, dtype=dtype, learns=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    return Case(
        "document_attention",
        {"documents": count, "tokens": length, "heads": HEADS, "kv_heads": KV_HEADS},
        dtype,
        lambda: document_attention(*states, cu, SCALE),
        _peers(states, cu, count),
        2.0 * size(*states),
        2.0 * count * length * length * HEADS * HEAD_DIM,
        states,
        backward_factor=2.5,
        together=True,
    )


def _peers(states: list[Tensor], cu: Tensor, count: int) -> dict[str, Callable[[], Tensor]]:
    """Library attention of documents of equal length; padding costs them nothing here."""

    def batched(**settings) -> Tensor:
        q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in states)
        out = F.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True, **settings)
        return out.transpose(1, 2).flatten(0, 1)

    tokens = len(states[0]) // count
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=cu.device).tril()
    peers = {
        "sdpa, equal lengths": lambda: batched(is_causal=True),
        "sdpa, masked": lambda: batched(attn_mask=causal),
    }
    if states[0].is_cuda and importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        lengths = (cu.int(), cu.int(), tokens, tokens)
        peers["flash-attn"] = lambda: flash_attn_varlen_func(
            *states, *lengths, softmax_scale=SCALE, causal=True
        )
    return peers
