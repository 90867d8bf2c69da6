"""`msa bench kernels`: every operation beside what it replaces, and beside the device's floor.

routing: scores of documents and chunks. states: what is made of every token's states. attention: of
contexts over selected chunks, and of documents over themselves. A suite is a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from msa_kernels import (
    chunk_mean,
    chunk_scores,
    context_attention,
    document_attention,
    document_scores,
    norm_rope,
    quantise,
    quantised_document_scores,
    reference,
    top_documents,
)
from msa_kernels.ragged import chunk_token_offsets, cumulative, segment_ids
from torch import Tensor

from msa_train.bench.floor import Floor
from msa_train.bench.kernels import baselines
from msa_train.bench.kernels.cases import (
    CHUNK,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    SCALE,
    WIDTH,
    Case,
    beside_reference,
    device,
    draw,
    every,
    one_to_three,
    rows,
    size,
    unit_heads,
)
from msa_train.bench.memory.layer import layer_searcher
from msa_train.bench.runner import in_process, log
from msa_train.errors import ConfigError
from msa_train.model.attention import HeadGroup, Projections, Router, pool_documents
from msa_train.model.config import RouterConfig

REPEATS = 7
TOP_K = 16
SMALL = (16_384, 32)  # chunks, question tokens
LARGE = (1_562_500, 64)  # 100M memory tokens
POOLED = {"cpu": 16_384, "cuda": 65_536}  # tokens
DOCUMENTS, CHUNKS_EACH, SELECTED, CONTEXTS, TOKENS = 32, 8, 16, 16, 64
ATTENDING = 128  # documents that attend to themselves


def measure(suites: Sequence[str] = (), repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Rows {"name", "pass", "device", "dtype", "shape", "ours_ms", "baseline", "baseline_ms",
    "ratio", "moved_mb", "gflop", "floor_ms", "percent_of_floor", "scratch_mb", ...}: medians.

    suites: by name (none: all); repeats: timed runs of each side, in turns. Raises ConfigError for
    an unknown suite.
    """
    for suite in suites:
        if suite not in SUITES:
            raise ConfigError(f"suite {suite!r} is unknown; there are {', '.join(SUITES)}")
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}: give 1 or more")
    # Both sides on large pages: else faults of fresh small ones are what a CPU is measured by.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    found = []
    for suite in suites or SUITES:
        log(f"kernels: {suite}")
        found += in_process(suite_rows, suite, repeats)
    return found


def suite_rows(suite: str, repeats: int) -> list[dict[str, Any]]:
    """One suite, in this process."""
    torch.manual_seed(0)
    return [row for case in SUITES[suite]() for row in rows(case, Floor.of(case.dtype), repeats)]


def routing() -> Iterator[Case]:
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
        return baselines.published_document_scores(grouped, sliced, document, documents)

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
        others |= baselines.late_interaction(query, keys, chunk_cu)
        yield Case("route", shape, base, baseline, others, size(keys), flops)
    for form in ("int8", "fp8"):
        small = quantise(keys, KV_HEADS, form)
        run = partial(quantised_document_scores, query, query_cu, small, chunk_cu)
        moved, dtype = size(small.values, small.scales), small.values.dtype
        yield Case("route", shape, dtype, run, {name: baseline}, moved, flops)
        searcher = layer_searcher(keys, chunk_cu, KV_HEADS, RouterConfig(top_k=TOP_K), form)
        certified = partial(searcher.best, 0, query, query_cu, TOP_K)
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


def states() -> Iterator[Case]:
    tokens = POOLED[device().type]
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield from _pool(tokens, dtype)
    yield _norm_rope(tokens // 4, dtype)


def _pool(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    """What a router layer keeps of documents, from normed states, keys and values.

    "published" projects a router key for every token, as the publication does; "running sums" pools
    as it does, but projects the mean, as ours.
    """
    h = draw(tokens, HIDDEN, dtype=dtype, learns=True)
    k, v = (draw(tokens, KV_HEADS, HEAD_DIM, dtype=dtype, learns=True) for _ in "kv")
    weight = draw(WIDTH, HIDDEN, dtype=dtype) * HIDDEN**-0.5
    documents = every(tokens // (8 * CHUNK), 8 * CHUNK)
    token_cu = chunk_token_offsets(documents, CHUNK)

    def project(states: Tensor) -> Tensor:
        return F.linear(states, weight).unflatten(1, (KV_HEADS, HEAD_DIM))

    router = Router(RouterConfig(chunk_size=CHUNK), HeadGroup(HEADS), None, None, project, KV_HEADS)

    def ours() -> tuple[Tensor, ...]:
        pooled = pool_documents(h, Projections(k[:0], k, v), documents, router)  # no queries here
        return pooled.k, pooled.v, pooled.key

    def theirs() -> tuple[Tensor, ...]:
        means = (
            baselines.published_chunk_means(x.flatten(1), token_cu) for x in (k, v, project(h))
        )
        k_mean, v_mean, key = means
        return k_mean, v_mean, F.normalize(key.unflatten(1, (KV_HEADS, -1)), dim=-1)

    def pooled_first(mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return mean(k), mean(v), F.normalize(project(mean(h)), dim=-1)

    def running_sums(x: Tensor) -> Tensor:
        return baselines.published_chunk_means(x.flatten(1), token_cu).unflatten(1, x.shape[1:])

    chunks = len(token_cu) - 1
    case = Case(
        "pool",
        {"tokens": tokens, "hidden": HIDDEN, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM},
        dtype,
        ours,
        {"published": theirs, "running sums": partial(pooled_first, running_sums)},
        size(h, k, v),
        2.0 * chunks * HIDDEN * WIDTH + h.numel() + k.numel() + v.numel(),
        [h, k, v],
        backward_factor=1.0,
    )
    yield case
    yield beside_reference(
        case, partial(pooled_first, lambda x: reference.chunk_mean(x, documents, CHUNK))
    )


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


def attention() -> Iterator[Case]:
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield from _pool_and_attend(dtype)
    if device().type == "cuda":
        yield from document_cases([512] * ATTENDING, dtype)  # 64K memory tokens
    yield from document_cases([64] * ATTENDING, dtype)
    yield from document_cases(torch.randint(16, 129, (ATTENDING,)).tolist(), dtype)


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
            baselines.published_chunk_means(x.flatten(1), token_cu).unflatten(1, (KV_HEADS, -1))
            for x in (k, v)
        )
        return baselines.published_attention(*own, *pooled, index, SCALE).flatten(0, 1)

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


def document_cases(
    lengths: list[int],
    dtype: torch.dtype,
    heads: tuple[int, int, int] = (HEADS, KV_HEADS, HEAD_DIM),
) -> Iterator[Case]:
    """Documents that attend to themselves, beside libraries' attention, then beside the reference.

    heads: of queries, of keys, and their width.
    """
    (queries, groups, width), scale = heads, heads[2] ** -0.5
    cu = cumulative(torch.tensor(lengths, device=device()))
    states = [
        draw(sum(lengths), count, width, dtype=dtype, learns=True)
        for count in (queries, groups, groups)
    ]
    shape = {"documents": len(lengths), "tokens": max(lengths), "memory_tokens": sum(lengths)}
    case = Case(
        "document_attention",
        {**shape, "heads": queries, "kv_heads": groups},
        dtype,
        lambda: document_attention(*states, cu, scale),
        baselines.causal_attention(states, cu, scale),
        2.0 * size(*states),
        2.0 * sum(n * n for n in lengths) * queries * width,
        states,
        backward_factor=2.5,
        together=True,
    )
    yield case
    yield beside_reference(case, lambda: reference.document_attention(*states, cu, scale))


def context_case(
    contexts: int,
    tokens: int,
    entries: int,
    dtype: torch.dtype,
    heads: tuple[int, int, int] = (HEADS, KV_HEADS, HEAD_DIM),
) -> Case:
    """Contexts over chunks that each selected, `entries` of them, beside attention over copies.

    heads: of queries, of keys, and their width.
    """
    (queries, groups, width), scale = heads, heads[2] ** -0.5
    own = [
        draw(contexts * tokens, count, width, dtype=dtype, learns=True)
        for count in (queries, groups, groups)
    ]
    chunks = 4 * entries  # contexts share some
    pooled = [draw(chunks, groups, width, dtype=dtype, learns=True) for _ in "kv"]
    index = torch.stack([torch.randperm(chunks)[:entries].sort().values for _ in range(contexts)])
    index = index.to(device())
    cu, index_cu = every(contexts, tokens), every(contexts, entries)
    # Own keys and, once for each context, the chunks that it reads.
    moved = (
        2 * size(own[0]) + size(*own[1:]) + contexts * entries * size(pooled[0][:1], pooled[1][:1])
    )
    return Case(
        "context_attention",
        {"contexts": contexts, "tokens": tokens, "selected_chunks": entries, "heads": queries},
        dtype,
        lambda: context_attention(
            *own, cu, cu, *pooled, index.flatten(), index_cu, None, None, scale
        ),
        baselines.gathered_attention(own, pooled, index, scale),
        moved,
        4.0 * contexts * tokens * (entries + tokens / 2) * queries * width,
        [*own, *pooled],
        backward_factor=2.5,
        together=True,
    )


SUITES: dict[str, Callable[[], Iterator[Case]]] = {
    "routing": routing,
    "states": states,
    "attention": attention,
}
