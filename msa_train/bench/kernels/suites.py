"""Scoring: one GEMM of summed query heads against per-head scores, and keys of fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from msa_kernels import (
    certified_top_documents,
    chunk_scores,
    document_scores,
    quantise,
    quantised_document_scores,
    reference,
    top_documents,
)
from msa_kernels.bench import peers, published
from msa_kernels.bench.cases import Case, beside_reference
from msa_kernels.bench.geometry import (
    HEADS,
    KV_HEADS,
    WIDTH,
    every,
    one_to_three,
    unit_heads,
)
from msa_kernels.bench.measure import device, size
from msa_kernels.ragged import segment_ids

TOP_K = 16
SMALL = (16_384, 32)  # chunks, question tokens
LARGE = (1_562_500, 64)  # 100M memory tokens


def cases() -> Iterator[Case]:
    yield from _against_published(*SMALL)
    yield from _narrow_keys(*(LARGE if device().type == "cuda" else SMALL))
    yield from _selected(16 * 8, 48)


def query_vectors(query: Tensor) -> Tensor:
    """[T, H, D] normalised router queries -> [T, G*D]: the sum of each group, over H."""
    return query.unflatten(1, (KV_HEADS, -1)).sum(2).flatten(1) / HEADS


def _bank(chunks: int, tokens: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """(query_cu and chunk_cu, one context and one bank)."""
    chunk_cu, query_cu = one_to_three(chunks), every(1, tokens)
    return (query_cu, chunk_cu), (torch.zeros_like(query_cu[:1]), every(1, len(chunk_cu) - 1))


def _against_published(chunks: int, tokens: int) -> Iterator[Case]:
    """Both from normalised router queries and stored keys to the documents' scores."""
    query, keys = unit_heads(tokens, HEADS), unit_heads(chunks, KV_HEADS)
    (query_cu, chunk_cu), one = _bank(chunks, tokens)
    documents, document = len(chunk_cu) - 1, segment_ids(chunk_cu)
    flat = keys.flatten(1)
    inputs = [query.requires_grad_(), flat.requires_grad_()]

    def ours(score: Callable[..., Tensor]) -> Tensor:
        return score(query_vectors(query), query_cu, flat, chunk_cu, *one)

    def theirs() -> Tensor:
        # The layouts in which the published engine keeps its states.
        grouped = query.unflatten(1, (KV_HEADS, -1)).permute(1, 2, 0, 3)[None]
        sliced = flat.unflatten(1, (KV_HEADS, -1)).permute(1, 2, 0)[None, :, None]
        return published.document_scores(grouped, sliced, document, documents)

    case = Case(
        "route",
        {"chunks": chunks, "tokens": tokens, "heads": HEADS, "width": WIDTH},
        torch.float32,
        partial(ours, document_scores),
        {"published": theirs},
        size(flat),
        2.0 * chunks * tokens * WIDTH,
        inputs,
        # Backward reads and writes as much, and multiplies one row per document and side.
        backward_factor=1.0,
    )
    yield case
    yield beside_reference(case, partial(ours, reference.document_scores))


def _narrow_keys(chunks: int, tokens: int) -> Iterator[Case]:
    """Keys of fewer bytes against float32, or bfloat16 where float32 is too much."""
    query = query_vectors(unit_heads(tokens, HEADS))
    (query_cu, chunk_cu), one = _bank(chunks, tokens)
    shape = {"chunks": chunks, "tokens": tokens, "heads": HEADS, "width": WIDTH}
    flops = 2.0 * chunks * tokens * WIDTH
    base = torch.bfloat16 if device().type == "cuda" else torch.float32
    keys = unit_heads(chunks, KV_HEADS, base).flatten(1)
    baseline = partial(document_scores, query, query_cu, keys, chunk_cu, *one)
    name = f"ours in {str(base).removeprefix('torch.')}"
    if base == torch.float32:
        half = keys.bfloat16()
        run = partial(document_scores, query, query_cu, half, chunk_cu, *one)
        yield Case("route", shape, torch.bfloat16, run, {name: baseline}, size(half), flops)
    else:
        others = {"plain read": lambda: keys.view(torch.int32).sum()}
        others |= peers.late_interaction(query, keys, chunk_cu)
        yield Case("route", shape, base, baseline, others, size(keys), flops)
    for form in ("int8", "fp8"):
        small = quantise(keys, KV_HEADS, form)
        run = partial(quantised_document_scores, query, query_cu, small, chunk_cu)
        moved, dtype = size(small.values, small.scales), small.values.dtype
        yield Case("route", shape, dtype, run, {name: baseline}, moved, flops)
        certified = partial(
            certified_top_documents, query, query_cu, small, keys.__getitem__, chunk_cu, TOP_K
        )
        exact = {f"{name}, top {TOP_K}": lambda: top_documents(baseline(), TOP_K)}
        yield Case("certified", shape, dtype, certified, exact, moved, flops)


def _selected(entries: int, contexts: int) -> Iterator[Case]:
    """The scores that the gate weighs, of contexts with 25 question tokens."""
    query = query_vectors(unit_heads(contexts * 25, HEADS)).requires_grad_()
    keys = unit_heads(2048, KV_HEADS).flatten(1).requires_grad_()
    index = torch.randint(2048, (contexts, entries), device=device()).sort(1).values
    query_cu, index_cu = every(contexts, 25), every(contexts, entries)

    def gathered() -> Tensor:
        rows = query.view(contexts, 25, WIDTH)
        return (rows @ keys[index].mT).amax(1).flatten()

    given = query, query_cu, keys, index.flatten(), index_cu
    case = Case(
        "score_selected",
        {"entries": entries, "contexts": contexts, "tokens": 25, "width": WIDTH},
        torch.float32,
        lambda: chunk_scores(*given),
        {"gathered": gathered},
        size(keys, query),
        2.0 * contexts * entries * 25 * WIDTH,
        [query, keys],
        backward_factor=1.0,
    )
    yield case
    yield beside_reference(case, lambda: reference.chunk_scores(*given))
