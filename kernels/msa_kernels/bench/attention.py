"""Attention of contexts over selected chunks, and of documents over themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from msa_kernels import chunk_mean, context_attention, document_attention, reference
from msa_kernels.bench import peers, published
from msa_kernels.bench.cases import Case, beside_reference
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
    yield from _pool_and_attend(dtype)
    if device().type == "cuda":
        yield from _documents([512] * 128, dtype)  # 64K memory tokens
    yield from _documents([64] * 128, dtype)
    yield from _documents(torch.randint(16, 129, (128,)).tolist(), dtype)


def _pool_and_attend(dtype: torch.dtype) -> Iterator[Case]:
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

    def both(pool: Callable[..., Tensor], attend: Callable[..., Tensor]) -> Tensor:
        pooled = (pool(x, doc_cu, CHUNK) for x in (k, v))
        flat = (x.flatten(0, 1) for x in own)
        return attend(*flat, ctx_cu, ctx_cu, *pooled, index.flatten(), index_cu, None, None, SCALE)

    def theirs() -> Tensor:
        pooled = (
            published.chunk_means(x.flatten(1), token_cu).unflatten(1, (KV_HEADS, -1))
            for x in (k, v)
        )
        return published.gathered_attention(*own, *pooled, index, SCALE).flatten(0, 1)

    keys = index.shape[1] + TOKENS / 2
    case = Case(
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
        partial(both, chunk_mean, context_attention),
        {"published": theirs},
        size(k, v, *own),
        4.0 * CONTEXTS * TOKENS * keys * HEADS * HEAD_DIM,
        [k, v, *own],
        together=True,
    )
    yield case
    yield beside_reference(case, partial(both, reference.chunk_mean, reference.context_attention))


def _documents(lengths: list[int], dtype: torch.dtype) -> Iterator[Case]:
    cu = cumulative(torch.tensor(lengths, device=device()))
    states = [
        draw(sum(lengths), heads, HEAD_DIM, dtype=dtype, learns=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    shape = {"documents": len(lengths), "tokens": max(lengths), "memory_tokens": sum(lengths)}
    case = Case(
        "document_attention",
        {**shape, "heads": HEADS, "kv_heads": KV_HEADS},
        dtype,
        lambda: document_attention(*states, cu, SCALE),
        peers.causal(states, cu, SCALE),
        2.0 * size(*states),
        2.0 * sum(n * n for n in lengths) * HEADS * HEAD_DIM,
        states,
        backward_factor=2.5,
        together=True,
    )
    yield case
    yield beside_reference(case, lambda: reference.document_attention(*states, cu, SCALE))
