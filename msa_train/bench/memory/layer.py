"""One router layer of the 4B geometry at 100M tokens: every form of keys, one rank and two.

A rank is a process with keys of its own; the parent merges what they find, as Memory Parallel does.
Two ranks have a thread each, one rank has both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_train.bench.floor import against_floor, multiply, read_all
from msa_train.bench.memory.sizes import Sizes
from msa_train.bench.runner import Workers, in_turns, log, process_gb
from msa_train.memory.search.keys import KeyForm, LayerKeys
from msa_train.memory.search.searcher import Found, LocalSearcher, Part, best_of
from msa_train.model.config import RouterConfig

FORMS = ("float32", "bfloat16", "int8")
TOP_K = 16
_BLOCK = 1 << 16
_GEMM_ROWS = 1 << 17  # of the matrix that stands for all chunks: more than caches hold
LAYER = 0


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


def layer_4b(sizes: Sizes) -> list[dict[str, Any]]:
    """A row per form of keys, number of ranks and question tokens."""
    rows = []
    for form in FORMS:
        for ranks in (1, 2):
            log(f"memory: layer of {sizes.chunks:,} x {sizes.width}, {form}, {ranks} ranks")
            with started(form, ranks, sizes) as workers:
                rows += [row(form, workers, tokens, sizes) for tokens in sizes.queries]
    return rows


def started(form: str, ranks: int, sizes: Sizes) -> Workers:
    threads = max(1, torch.get_num_threads() // ranks)
    cuts = [sizes.chunks * rank // ranks for rank in range(ranks + 1)]
    shares = [
        Rank(form, first, end - first, sizes.chunks, sizes.width, sizes.heads, sizes.queries)
        for first, end in pairwise(cuts)
    ]
    return Workers("rank", [partial(_rank, share) for share in shares], threads)


def row(form: str, workers: Workers, tokens: int, sizes: Sizes) -> dict[str, Any]:
    memory = workers.ask("memory", tokens)

    def search() -> Found:
        answers = workers.ask("search", tokens)
        return best_of([Found(*map(torch.tensor, each)) for each in answers], TOP_K)

    sides = {"search": search}
    sides |= {name: partial(workers.ask, name, tokens) for name in ("read", "gemm")}
    found = against_floor(in_turns(sides, sizes.repeats))
    found["search_ms"] = found.pop("route_ms")
    found["search_best_ms"] = found.pop("route_best_ms")
    return {
        "form": form,
        "ranks": len(workers),
        "threads_each": max(1, torch.get_num_threads() // len(workers)),
        "chunks": sizes.chunks,
        "width": sizes.width,
        "question_tokens": tokens,
        **found,
        "keys_gb": round(sum(each["keys_gb"] for each in memory), 3),
        "rss_gb": round(sum(each["resident"] for each in memory), 3),
        "peak_gb": round(sum(each["peak"] for each in memory), 3),
    }


def _rank(share: Rank) -> Callable[[str, int], Any]:
    runs = rank_runs(share)
    return lambda name, tokens: runs[name, tokens]()


def rank_runs(rank: Rank) -> dict[tuple[str, int], Callable[[], Any]]:
    """What a rank does when it is asked, by name and number of question tokens."""
    full = unit_keys(rank)
    cu = torch.arange(rank.chunks + 1)
    # Float keys are searched as they lie; 8-bit ones beside full ones, for documents in doubt.
    form = rank.form if rank.form == "int8" else "stored"
    router = RouterConfig(top_k=TOP_K)
    searcher = layer_searcher(full, cu, rank.heads, router, form, rank.first, rank.total)
    keys = searcher.parts[0].keys[LAYER]
    narrow = keys._searched
    searched = read_all([full] if form == "stored" else [narrow.values, narrow.scales])
    searches = {tokens: _search(searcher, unit_query(tokens, rank)) for tokens in rank.queries}
    for search in searches.values():
        search()
    held = {**process_gb(), "keys_gb": keys.searched_bytes / 1e9}  # before the floor's matrices
    wide = torch.empty(min(rank.chunks, _GEMM_ROWS), rank.width).normal_()
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    for tokens, search in searches.items():
        runs["search", tokens] = search
        runs["read", tokens] = lambda: searched() and None
        runs["gemm", tokens] = multiply([full], unit_query(tokens, rank), wide=wide)
        runs["memory", tokens] = lambda: held
    return runs


def layer_searcher(
    keys: Tensor, chunk_cu: Tensor, heads: int, router: RouterConfig, form: KeyForm = "stored",
    first: int = 0, total: int | None = None,
) -> LocalSearcher:  # fmt: skip
    """What the memory searches: one layer's keys [C, V] of documents chunk_cu [n+1], on the device
    where they lie; `first` of `total` documents. It has no states to read."""
    layer = LayerKeys(keys, chunk_cu, router, heads, form, keys.device)
    live = torch.ones(layer.documents if total is None else total, dtype=torch.bool)
    return LocalSearcher([Part(first, chunk_cu.cpu(), {LAYER: layer}, _no_states)], router, live)


def _search(searcher: LocalSearcher, query: Tensor) -> Callable[[], tuple[list, list]]:
    """The best documents as plain numbers, which are sent through a pipe."""
    query_cu = torch.tensor([0, len(query)])

    def run() -> tuple[list, list]:
        found = searcher.best(LAYER, query, query_cu, TOP_K)
        return found.places.tolist(), found.scores.tolist()

    return run


def unit_keys(rank: Rank) -> Tensor:
    """[chunks, V] random keys with heads of length 1, written block by block."""
    generator = torch.Generator().manual_seed(rank.first)
    dtype = torch.float32 if rank.form == "float32" else torch.bfloat16
    out = torch.empty(rank.chunks, rank.width, dtype=dtype)
    for block in out.split(_BLOCK):
        drawn = torch.randn(len(block), rank.heads, rank.width // rank.heads, generator=generator)
        block.copy_(F.normalize(drawn, dim=2).flatten(1))
    return out


def unit_query(tokens: int, rank: Rank) -> Tensor:
    """[T, V] query vectors as a router makes them: unit heads, divided by their number."""
    generator = torch.Generator().manual_seed(tokens)
    drawn = torch.randn(tokens, rank.heads, rank.width // rank.heads, generator=generator)
    return F.normalize(drawn, dim=2).flatten(1) / rank.heads


def _no_states(layer: int, rows: Tensor) -> Any:
    raise AssertionError("a search alone reads no states")
