"""One router layer of the 4B geometry at 100M tokens: every form of keys, one rank and two.

A rank is a process with keys of its own, asked and answering through a pipe; the parent merges what
they find, as Memory Parallel does. Two ranks have a thread each, one rank has both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_train.bench.floor import against_floor, multiply, read_all
from msa_train.bench.process import TIMEOUT_S, log, memory_gb
from msa_train.bench.sizes import Sizes
from msa_train.errors import RankError
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.shard import Found, Part, Shard, best_of
from msa_train.model.config import RouterConfig

FORMS = ("float32", "bfloat16", "int8")
TOP_K = 16
_BLOCK = 1 << 16
_GEMM_ROWS = 1 << 17  # of a product that stands for one of all chunks: more than caches hold
_LAYER = 0


@dataclass(frozen=True)
class Rank:
    """Chunks of one rank: `chunks` of them from `first` on, of `total`."""

    form: str
    first: int
    chunks: int
    total: int
    width: int
    heads: int
    queries: tuple[int, ...]
    threads: int


def layer_4b(sizes: Sizes) -> list[dict[str, Any]]:
    """A row per form of keys, number of ranks and question tokens."""
    threads, rows = torch.get_num_threads(), []
    for form in FORMS:
        for ranks in (1, 2):
            log(f"layer of {sizes.chunks:,} x {sizes.width}, {form}, {ranks} ranks")
            each = max(1, threads // ranks)
            with _started(form, ranks, each, sizes) as ends:
                rows += [_row(form, ends, tokens, each, sizes) for tokens in sizes.queries]
    return rows


def _row(
    form: str, ends: list[Connection], tokens: int, threads: int, sizes: Sizes
) -> dict[str, Any]:
    times: dict[str, list[float]] = {"search": [], "read": [], "gemm": []}
    memory = _ask(ends, "memory", tokens)
    for turn in range(sizes.repeats + 1):
        for name, measured in times.items():
            began = time.perf_counter()
            answers = _ask(ends, name, tokens)
            if name == "search":
                best_of([Found(*map(torch.tensor, each)) for each in answers], TOP_K)
            if turn:
                measured.append((time.perf_counter() - began) * 1e3)
    found = against_floor(times)
    found["search_ms"] = found.pop("route_ms")
    found["search_best_ms"] = found.pop("route_best_ms")
    return {
        "form": form,
        "ranks": len(ends),
        "threads_each": threads,
        "chunks": sizes.chunks,
        "width": sizes.width,
        "question_tokens": tokens,
        **found,
        "keys_gb": round(sum(each["keys_gb"] for each in memory), 3),
        "rss_gb": round(sum(each["resident"] for each in memory), 3),
        "peak_gb": round(sum(each["peak"] for each in memory), 3),
    }


@contextmanager
def _started(form: str, ranks: int, threads: int, sizes: Sizes):
    context = get_context("spawn")
    cuts = [sizes.chunks * rank // ranks for rank in range(ranks + 1)]
    ends, processes = [], []
    try:
        for first, end in pairwise(cuts):
            ours, theirs = context.Pipe()
            rank = Rank(
                form, first, end - first, sizes.chunks, sizes.width, sizes.heads, sizes.queries,
                threads,
            )  # fmt: skip
            process = context.Process(target=_serve, args=(theirs, rank), daemon=True)
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        yield ends
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(10)
            process.kill()
            process.join(10)


def _ask(ends: list[Connection], name: str, tokens: int) -> list[Any]:
    """All ranks at once. Raises RankError for one that does not answer."""
    for number, end in enumerate(ends):
        with _named(number, len(ends)):
            end.send((name, tokens))
    answers = []
    for number, end in enumerate(ends):
        with _named(number, len(ends)):
            if not end.poll(TIMEOUT_S):
                raise RankError(f"rank {number} of {len(ends)} did not answer in {TIMEOUT_S} s")
            answers.append(end.recv())
    return answers


@contextmanager
def _named(number: int, ranks: int):
    try:
        yield
    except (EOFError, OSError):
        raise RankError(f"rank {number} of {ranks} died (see standard error)") from None


def _serve(end: Connection, rank: Rank) -> None:
    os.dup2(2, 1)
    torch.set_num_threads(rank.threads)
    runs = _runs(rank)
    while True:
        try:
            name, tokens = end.recv()
        except EOFError:
            return
        end.send(runs[name, tokens]())


def _runs(rank: Rank) -> dict[tuple[str, int], Callable[[], Any]]:
    """What a rank can be asked to do, for each number of question tokens."""
    full = unit_keys(rank)
    router = RouterConfig(top_k=TOP_K)
    cu = torch.arange(rank.chunks + 1)
    # Float keys are searched as they lie; 8-bit ones beside full ones, for documents in doubt.
    form = rank.form if rank.form == "int8" else "stored"
    keys = LayerKeys(full, cu, router, rank.heads, form)
    live = torch.ones(rank.total, dtype=torch.bool)
    shard = Shard([Part(rank.first, cu, {_LAYER: keys}, _nothing)], router, live)
    searched = read_all([full]) if form == "stored" else read_all(searched_tensors(keys))
    searches = {tokens: _search(shard, unit_query(tokens, rank)) for tokens in rank.queries}
    for search in searches.values():
        search()
    held = {**memory_gb(), "keys_gb": keys.searched_bytes / 1e9}  # before the floor's matrices
    wide = torch.empty(min(rank.chunks, _GEMM_ROWS), rank.width).normal_()
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    for tokens, search in searches.items():
        runs["search", tokens] = search
        runs["read", tokens] = lambda: searched() and None
        runs["gemm", tokens] = multiply([full], unit_query(tokens, rank), wide=wide)
        runs["memory", tokens] = lambda: held
    return runs


def _search(shard: Shard, query: Tensor) -> Callable[[], tuple[list, list]]:
    """The best documents as plain numbers, which pass through a pipe."""
    query_cu = torch.tensor([0, len(query)])

    def run() -> tuple[list, list]:
        found = shard.best(_LAYER, query, query_cu, TOP_K)
        return found.places.tolist(), found.scores.tolist()

    return run


def unit_keys(rank: Rank) -> Tensor:
    """[chunks, V] random keys with heads of length 1, made where they lie, a block at a time."""
    generator = torch.Generator().manual_seed(rank.first)
    dtype = torch.float32 if rank.form == "float32" else torch.bfloat16
    out = torch.empty(rank.chunks, rank.width, dtype=dtype)
    for block in out.split(_BLOCK):
        drawn = torch.randn(len(block), rank.heads, rank.width // rank.heads, generator=generator)
        block.copy_(F.normalize(drawn, dim=2).flatten(1))
    return out


def unit_query(tokens: int, rank: Rank) -> Tensor:
    """[T, V] as a router's: sums of unit vectors of a group's heads, over the number of heads."""
    generator = torch.Generator().manual_seed(tokens)
    drawn = torch.randn(tokens, rank.heads, rank.width // rank.heads, generator=generator)
    return F.normalize(drawn, dim=2).flatten(1) / rank.heads


def searched_tensors(keys: LayerKeys) -> list[Tensor]:
    """Values and scales of 8-bit keys."""
    searched = keys._searched
    return [searched.values, searched.scales]


def _nothing(layer: int, rows: Tensor) -> Any:
    raise AssertionError("a search alone reads no states")
