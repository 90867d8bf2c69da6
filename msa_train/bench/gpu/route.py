"""Part `route`: the score kernel at the size of a memory, as a share of the card's read bandwidth.

One layer's keys, one chunk to a document. The floor reads every key once, or multiplies it with
every query vector, whichever takes longer, both as measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from msa_kernels import document_scores, quantise, quantised_document_scores
from torch import Tensor

from msa_train.bench.floor import Floor
from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.bench.kernels.cases import draw, every, size, unit_heads
from msa_train.bench.runner import in_turns

FORMS = {
    "bfloat16": "bfloat16 keys and query", "bfloat16, split": "bfloat16 keys, float32 query",
    "int8": "int8 keys, float32 query", "fp8": "fp8 keys, float32 query",
}  # fmt: skip
_READ, _GEMM = ("plain read", "GB/s"), ("plain bfloat16 product of matrices", "TFLOP/s")


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    rows = [(_name(form, tokens), "GB/s") for form in FORMS for tokens in sizes.tokens]
    return [_READ, _GEMM, *rows]


def rows(sizes: BatterySizes) -> Iterator[Row]:
    """GB/s of keys, as they are searched, for every form and number of question tokens."""
    torch.manual_seed(0)
    floor = Floor.of(torch.bfloat16)
    yield measured(*_READ, lambda: Measured(floor.bytes_per_ms / 1e6))
    yield measured(*_GEMM, lambda: Measured(floor.flops_per_ms / 1e9))
    heads, width = sizes.large.router_key_heads, sizes.large.router_head_dim
    keys = unit_heads(sizes.chunks, heads, torch.bfloat16, width).flatten(1)
    for form in FORMS:
        score: _Score | Exception
        try:
            score = _scoring(form, keys, heads)
        except Exception as error:  # such as a form that this card has no arithmetic for
            score = error
        for tokens in sizes.tokens:
            yield measured(_name(form, tokens), "GB/s", partial(_rate, score, tokens, sizes))


def _name(form: str, tokens: int) -> str:
    return f"{FORMS[form]}, {tokens} question {'token' if tokens == 1 else 'tokens'}"


class _Score:
    """Scores of one question for all documents, and the bytes of keys that it reads."""

    def __init__(self, run: Callable[[Tensor, Tensor], Any], read: int, width: int):
        self.run, self.read, self.width = run, read, width


def _scoring(form: str, keys: Tensor, heads: int) -> _Score:
    chunk_cu = torch.arange(len(keys) + 1, device=keys.device)
    if form in ("int8", "fp8"):
        small = quantise(keys, heads, form)
        return _Score(
            lambda query, cu: quantised_document_scores(query, cu, small, chunk_cu),
            size(small.values, small.scales),
            keys.shape[1],
        )
    bank = torch.zeros(1, dtype=torch.int64, device=keys.device), every(1, len(keys))
    narrow = form == "bfloat16"
    return _Score(
        lambda query, cu: document_scores(
            query.bfloat16() if narrow else query, cu, keys, chunk_cu, *bank
        ),
        size(keys),
        keys.shape[1],
    )


def _rate(score: _Score | Exception, tokens: int, sizes: BatterySizes) -> Measured:
    if isinstance(score, Exception):
        raise score
    query, cu = draw(tokens, score.width) / score.width, every(1, tokens)
    with torch.inference_mode():
        times = in_turns({"score": lambda: score.run(query, cu)}, sizes.repeats)["score"]
    ms = median(times)
    flops = 2.0 * tokens * sizes.chunks * score.width
    floor = Floor.of(torch.bfloat16).ms(score.read, flops)
    return Measured(score.read / ms / 1e6, score.read / floor / 1e6, f"{ms:.3f} ms")
