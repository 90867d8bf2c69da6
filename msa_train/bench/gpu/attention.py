"""Part `attention`: documents over themselves, contexts over chunks, beside what libraries do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from msa_train.bench.floor import Floor
from msa_train.bench.gpu import results
from msa_train.bench.gpu.results import Measured, Row
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.bench.kernels.cases import Case, device
from msa_train.bench.kernels.cases import rows as case_rows
from msa_train.bench.kernels.suites import context_case, document_cases

_DOCUMENT_PEERS = ("sdpa, equal lengths", "sdpa, nested", "flex", "flash-attn")
_CONTEXT_PEERS = ("sdpa, gathered", "flex, gathered", "flash-attn, gathered")
_BOTH = "forward+backward"


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    found = []
    for name, peers in _named(sizes).items():
        found += [(each, "ms") for each in (name, *(f"{name}: {peer}" for peer in peers))]
    return found


def rows(sizes: BatterySizes) -> Iterator[Row]:
    """Ours and every peer that runs here, on the same tensors, in turns."""
    torch.manual_seed(0)
    for name, make in _cases(sizes).items():
        found: list[dict[str, Any]] = []

        def ours(make: Callable[[], Case] = make, found: list = found) -> Measured:
            case = make()
            found += case_rows(case, Floor.of(case.dtype), sizes.repeats)
            return Measured(found[0]["ours_ms"], found[0]["floor_ms"])

        yield results.measured(name, "ms", ours)
        for each in found:
            beside = Measured(each["baseline_ms"], each["floor_ms"], f"ours: {each['ratio']} times")
            yield results.measured(f"{name}: {each['baseline']}", "ms", lambda it=beside: it)


def _named(sizes: BatterySizes) -> dict[str, tuple[str, ...]]:
    contexts, tokens, entries = sizes.reading
    named = {
        f"documents, {sizes.together // length} of {length} tokens, {_BOTH}": _DOCUMENT_PEERS
        for length in sizes.attended
    }
    name = f"contexts, {contexts} of {tokens} tokens over {entries} chunks each, {_BOTH}"
    return {name: _CONTEXT_PEERS, **named}


def _cases(sizes: BatterySizes) -> dict[str, Callable[[], Case]]:
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    heads = sizes.large.heads, sizes.large.kv_heads, sizes.large.head_dim
    makes: list[Callable[[], Case]] = [lambda: context_case(*sizes.reading, dtype, heads)]
    for length in sizes.attended:
        lengths = [length] * (sizes.together // length)
        makes.append(lambda given=lengths: next(document_cases(given, dtype, heads)))
    return dict(zip(_named(sizes), makes, strict=True))
