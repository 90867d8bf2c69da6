"""Forward and backward of every operation in a training step of the quickstart's size.

128 documents of about 62 tokens, 48 contexts of about 80, H=4, G=2, D=32, 16 selected documents,
float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msa_kernels import (
    chunk_mean,
    chunk_offsets,
    chunk_scores,
    context_attention,
    document_attention,
    document_scores,
    select_chunks,
    top_documents,
)
from msa_kernels.bench.measure import device_name, time_in_turns
from msa_kernels.ragged import cumulative

HEADS, KV_HEADS, HEAD_DIM, TOP_K, CHUNK = 4, 2, 32, 16, 64
SCALE = HEAD_DIM**-0.5


def measure(repeats: int = 15) -> dict:
    """{operation: {"forward_ms", "backward_ms"}, "device", "threads"}."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides: dict[str, Callable[[], object]] = {}
    operations = _operations(torch.device(device))
    for name, (run, inputs) in operations.items():
        sides[name] = run
        if inputs:
            sides[name + " both"] = _both(run, inputs)
    times = time_in_turns(sides, repeats)
    result: dict = {}
    for name in operations:
        both = times.get(name + " both", times[name])
        result[name] = {
            "forward_ms": round(times[name], 3),
            "backward_ms": round(both - times[name], 3),
        }
    return result | {"device": device_name(), "threads": torch.get_num_threads()}


def _both(run: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    def forward_and_backward() -> object:
        out = run()
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    return forward_and_backward


def _operations(device: torch.device) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """{name: (forward, differentiable inputs)} on one random step."""
    torch.manual_seed(0)

    def lengths(count: int, low: int, high: int) -> Tensor:
        return cumulative(torch.randint(low, high + 1, (count,), device=device))

    def states(rows: Tensor, *shape: int) -> Tensor:
        return torch.randn(int(rows[-1]), *shape, device=device, requires_grad=True)

    doc_cu, ctx_cu, query_cu = lengths(128, 58, 64), lengths(48, 60, 100), lengths(48, 20, 30)
    chunk_cu = chunk_offsets(doc_cu, CHUNK)
    heads, kv = (HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM)
    q, k, v = states(doc_cu, *heads), states(doc_cu, *kv), states(doc_cu, *kv)
    cq, ck, cv = states(ctx_cu, *heads), states(ctx_cu, *kv), states(ctx_cu, *kv)
    pooled_k, pooled_v = states(chunk_cu, *kv), states(chunk_cu, *kv)
    query, keys = states(query_cu, KV_HEADS * HEAD_DIM), states(chunk_cu, KV_HEADS * HEAD_DIM)
    bank = torch.zeros(48, dtype=torch.int64, device=device)
    bank_cu = torch.tensor([0, 128], device=device)
    routed = (query, query_cu, keys, chunk_cu, bank, bank_cu)
    scores = document_scores(*routed).detach()
    index, index_cu = select_chunks(top_documents(scores, TOP_K)[1], chunk_cu)
    bias = torch.randn(len(index), device=device, requires_grad=True)
    head = torch.full((48,), 3, device=device)
    memory = (pooled_k, pooled_v, index, index_cu, bias, head, SCALE)
    return {
        "chunk_mean": (lambda: chunk_mean(k, doc_cu, CHUNK), [k]),
        "document_scores": (lambda: document_scores(*routed), [query, keys]),
        "top_documents": (lambda: top_documents(scores, TOP_K)[0], []),
        "chunk_scores": (
            lambda: chunk_scores(query, query_cu, keys, index, index_cu),
            [query, keys],
        ),
        "document_attention": (lambda: document_attention(q, k, v, doc_cu, SCALE), [q, k, v]),
        "context_attention": (
            lambda: context_attention(cq, ck, cv, ctx_cu, ctx_cu, *memory),
            [cq, ck, cv, pooled_k, pooled_v, bias],
        ),
    }
