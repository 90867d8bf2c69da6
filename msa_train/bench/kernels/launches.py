"""Every way in which the Triton kernels are launched: dtypes and shapes that differ once compiled.

Tensors are small: a kernel is compiled for dtypes, head widths and which arguments there are, never
for a length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from msa_kernels import attend_triton, norm_rope_triton, pool_triton, scores_triton, sums_triton
from msa_kernels import quantised_triton as quantised
from msa_kernels.ragged import cumulative
from torch import Tensor

from msa_train.bench.kernels.cases import HEAD_DIM, HEADS, KV_HEADS, WIDTH

NAMES = {
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
    torch.int8: "int8", torch.float8_e4m3fn: "fp8",
}  # fmt: skip
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
NARROW = FLOATS[:2]
FP8_SINCE = 89  # compute capability
TOKENS, CHUNKS = 48, 64
_IN_FLOAT32 = re.compile(r"(attend|scatter|chunk mean|norm_rope|quantise) float32")
QUESTIONS = (16, 32, 64)  # question tokens: each takes another tile
FEW = scores_triton.FEW_ROWS


@dataclass(frozen=True)
class Launch:
    """Calls of launchers, `run()`; since: least compute capability that takes it."""

    name: str
    run: Callable[[], object]
    since: int = 80


def is_default(name: str) -> bool:
    """Whether training or serving launches it unless told otherwise: half precision, heads of 128
    values and fewer, keys in any form but float32."""
    unusual = "heads of 256" in name or "float32 keys" in name
    return not unusual and _IN_FLOAT32.match(name) is None


def launches() -> Iterator[Launch]:
    """All of them, by their names in the table."""
    yield from _scores()
    yield from _attention()
    for dtype in FLOATS:
        name = NAMES[dtype]
        yield Launch(f"scatter {name}", partial(_scatter, dtype))
        yield Launch(f"chunk mean {name}", partial(_pool, dtype))
        yield Launch(f"norm_rope {name}", partial(_norm_rope, dtype))
        yield Launch(f"quantise {name} to int8", partial(_quantise, dtype, torch.int8, 127.0))
        fp8 = partial(_quantise, dtype, torch.float8_e4m3fn, 448.0)
        yield Launch(f"quantise {name} to fp8", fp8, FP8_SINCE)


def _cu(*lengths: int) -> Tensor:
    return cumulative(torch.tensor(lengths))


def _scores() -> Iterator[Launch]:
    pairs = [(dtype, dtype) for dtype in FLOATS] + [(torch.float32, dtype) for dtype in NARROW]
    eight = [(torch.float32, dtype) for dtype in (torch.int8, torch.float8_e4m3fn)]
    shapes = [(1, tokens) for tokens in QUESTIONS] + [(1, 1), (1, FEW), (16, 1), (32, 1)]
    for query, keys in pairs + eight:
        since = FP8_SINCE if keys == torch.float8_e4m3fn else 80
        for contexts, tokens in shapes:
            name = f"{contexts} x {tokens} rows of {NAMES[query]}, {NAMES[keys]} keys"
            given = query, keys, contexts, tokens
            yield Launch(f"documents: {name}", partial(_documents, *given, False), since)
            if keys.itemsize > 1:  # 8-bit keys learn nothing
                yield Launch(f"documents, learning: {name}", partial(_documents, *given, True))
    for query, keys in pairs:
        for tokens in QUESTIONS:
            name = f"chunks: 1 x {tokens} rows of {NAMES[query]}, {NAMES[keys]} keys"
            yield Launch(name, partial(_chunks, query, keys, tokens))


def _documents(
    query: torch.dtype, keys: torch.dtype, contexts: int, tokens: int, learns: bool
) -> None:
    scales = torch.ones(CHUNKS, KV_HEADS) if keys.itemsize == 1 else None
    scores_triton.document_scores(
        torch.zeros(contexts * tokens, WIDTH, dtype=query), _cu(*[tokens] * contexts),
        torch.zeros(CHUNKS, WIDTH).to(keys), scales, _cu(*[4] * (CHUNKS // 4)),
        torch.zeros(contexts, dtype=torch.int64), _cu(CHUNKS // 4), learns,
    )  # fmt: skip


def _chunks(query: torch.dtype, keys: torch.dtype, tokens: int) -> None:
    scores_triton.chunk_scores(
        torch.zeros(tokens, WIDTH, dtype=query), _cu(tokens),
        torch.zeros(CHUNKS, WIDTH, dtype=keys), torch.arange(16), _cu(16),
    )  # fmt: skip


def _attention() -> Iterator[Launch]:
    for dtype in FLOATS:
        for width in (64, HEAD_DIM, 256):
            name = f"attend {NAMES[dtype]}, heads of {width}, gate"
            yield Launch(name, partial(_attend, dtype, width, True))
        name = f"attend {NAMES[dtype]}, heads of {HEAD_DIM}"
        yield Launch(name, partial(_attend, dtype, HEAD_DIM, False))
    for width in (32, 80):  # another power of two, and a width that is none
        name = f"attend bfloat16, heads of {width}, gate"
        yield Launch(name, partial(_attend, torch.bfloat16, width, True))
    for dtype in FLOATS:
        for pooled in FLOATS:
            if pooled != dtype:
                name = f"attend {NAMES[dtype]} to {NAMES[pooled]} chunks, gate"
                yield Launch(name, partial(_attend, dtype, HEAD_DIM, True, pooled))


def _attend(dtype: torch.dtype, width: int, gate: bool, pooled: torch.dtype | None = None) -> None:
    """Forward and backward of one context."""
    q = torch.zeros(TOKENS, HEADS, width, dtype=dtype)
    k = torch.zeros(TOKENS, KV_HEADS, width, dtype=dtype)
    chunks = torch.zeros(CHUNKS, KV_HEADS, width, dtype=pooled or dtype)
    memory = chunks, chunks, torch.arange(16), torch.zeros(16) if gate else None
    rest = torch.tensor([3]), (_cu(TOKENS), _cu(TOKENS), _cu(16)), width**-0.5
    out, lse = attend_triton.forward(q, k, k, *memory, *rest)
    attend_triton.backward(out, out, lse, q, k, k, *memory, *rest)


def _scatter(dtype: torch.dtype) -> None:
    """Backward of scores, and of the chunks that attention read."""
    query, keys = (torch.zeros(count, WIDTH, dtype=dtype) for count in (TOKENS, CHUNKS))
    grad, rows, span = torch.zeros(16), torch.arange(16), (torch.tensor([0]), torch.tensor([16]))
    sums_triton.sum_into_rows(keys, rows, grad, rows, span, _cu(TOKENS), query)
    sums_triton.sum_into_chunks(query, rows, grad, tuple(rows.sort()), keys)


def _pool(dtype: torch.dtype) -> None:
    x, token_cu = torch.zeros(TOKENS, WIDTH, dtype=dtype), _cu(16, 32)
    pool_triton.chunk_mean_backward(pool_triton.chunk_mean(x, token_cu), token_cu, len(x))


def _norm_rope(dtype: torch.dtype) -> None:
    q, k = (torch.zeros(TOKENS, heads, HEAD_DIM, dtype=dtype) for heads in (HEADS, KV_HEADS))
    weight, table = torch.ones(HEAD_DIM, dtype=dtype), torch.zeros(TOKENS, HEAD_DIM // 2)
    rest = weight, weight, table, table, 1e-6
    norm_rope_triton.backward(*norm_rope_triton.forward(q, k, *rest), q, k, *rest)


def _quantise(dtype: torch.dtype, form: torch.dtype, largest: float) -> None:
    keys = torch.zeros(CHUNKS, WIDTH, dtype=dtype)
    quantised.quantise(keys, KV_HEADS, form, largest)
