"""Banks searched by pooled queries: one vector per question and layer, in every form of keys.

Such a search is a product of a matrix and a vector: its floor is a plain read of the keys.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.tokenizer import Tokenizer
from msa_train.bench.floor import against_floor, multiply, read_all
from msa_train.bench.memory.banks import Load, layer_queries, searching
from msa_train.bench.memory.generate import generate_bank, read_questions
from msa_train.bench.memory.sizes import Sizes
from msa_train.bench.runner import in_process, in_turns, log
from msa_train.memory.search.keys import KeyForm, LayerKeys
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.settings import TierSettings
from msa_train.model.decoder import MSADecoder

_SAMPLE = 1024  # encoded documents for the statistics of the others: a backbone may be large
_PLANTED = 16


def pooled(load: Load, sizes: Sizes) -> list[dict[str, Any]]:
    """A row per bank of generated states and form of keys, each measured in a process of its own.

    A model whose router takes a maximum over tokens is asked as if it pooled them: the times are
    the same, and what it finds is not looked at.
    """
    load, rows = partial(_pooling, load), []
    for tokens in sizes.scale:
        log(f"memory: pooled queries, {tokens:,} tokens")
        with tempfile.TemporaryDirectory(prefix="msa-bench-") as folder:
            path = Path(folder) / "bank"
            in_process(_generate, load, path, tokens, sizes)
            rows += [in_process(_searched, load, path, form, sizes) for form in sizes.forms]
    return rows


def _pooling(load: Load) -> tuple[MSADecoder, Tokenizer, dict[str, str]]:
    model, tokenizer, fingerprint = load()
    router = replace(model.config.router, query_reduce="pooled")
    asked = copy(model)  # the same weights
    asked.config = replace(model.config, router=router)
    return asked, tokenizer, fingerprint


@torch.inference_mode()
def _generate(load: Load, path: Path, tokens: int, sizes: Sizes) -> None:
    planted, sample = min(_PLANTED, sizes.planted), min(_SAMPLE, sizes.sample)
    generate_bank(*load(), path, tokens, planted, sample)


@torch.inference_mode()
def _searched(load: Load, path: Path, form: KeyForm, sizes: Sizes) -> dict[str, Any]:
    model, tokenizer, fingerprint = load()
    live = LiveBank(path, model, fingerprint, TierSettings(keys=form))
    queries = layer_queries(model, tokenizer, live.view, read_questions(path)[0].question)
    parts = live.view.searcher.parts
    of_layers = {
        layer: [segment.pooled[layer].key.to(model.device) for segment in live.bank.segments]
        for layer in queries
    }
    full, one = [x for each in of_layers.values() for x in each], of_layers[next(iter(queries))]
    query, _ = next(iter(queries.values()))
    sides = {
        "search": searching(live.view, queries),
        "read": read_all([x for part in parts for each in queries for x in _read(part.keys[each])]),
        "read_stored": read_all(full),
        "gemm": multiply(one, query),
    }
    times = in_turns(sides, sizes.repeats)
    work = in_turns(sides, sizes.repeats, time.process_time)
    live.close()
    return _row(times, work, len(queries)) | {
        "tokens": live.bank.info()["tokens"],
        "chunks": sum(len(keys) for keys in one),
        "form": str(one[0].dtype).removeprefix("torch.") if form == "stored" else form,
        "stored": form == "stored",
        "width": query.shape[1],
        "layers": len(queries),
        "vectors": len(query),
        "threads": torch.get_num_threads(),
    }


def _row(
    times: dict[str, list[float]], work: dict[str, list[float]], layers: int
) -> dict[str, Any]:
    """read: of the keys as they are searched; read_stored: as the bank holds them; gemm: a plain
    float32 product. ratio: median search by the best read; *_best: best by best; cpu_*: of the
    processor time of all threads, which neighbours on the machine disturb less."""
    reads = {name: min(times[name]) for name in ("read", "read_stored")}
    given = {**times, "read": [ms / layers for ms in times["read"]]}
    floors = against_floor(given, layers)
    best = min(times["search"])
    return {
        **{name: floors[name] for name in ("route_ms", "route_best_ms", "gemm_ms")},
        **{f"{name}_ms": round(ms, 2) for name, ms in reads.items()},
        "ratio": round(statistics.median(times["search"]) / reads["read"], 2),
        "ratio_best": round(best / reads["read"], 2),
        "stored_ratio_best": round(best / reads["read_stored"], 2),
        "cpu_ms": round(min(work["search"]), 2),
        "cpu_ratio": round(min(work["search"]) / min(work["read"]), 2),
        "cpu_stored_ratio": round(min(work["search"]) / min(work["read_stored"]), 2),
    }


def _read(keys: LayerKeys) -> list[Tensor]:
    """What a search of them reads: all chunks of it."""
    searched = keys._searched
    return [searched] if isinstance(searched, Tensor) else [searched.values, searched.scales]
