"""Banks that are opened, searched, asked and added to."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.files import replace_file
from data_pipeline.protocol import prompt_pieces
from data_pipeline.tokenizer import Tokenizer
from msa_train.bench.floor import against_floor, multiply, read_all
from msa_train.bench.memory.generate import (
    Planted,
    generate_bank,
    needles,
    questions_of,
    read_questions,
)
from msa_train.bench.memory.sizes import Sizes
from msa_train.bench.runner import in_process, in_turns, log, process_gb, seconds
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.corpus import CorpusFile, Splitting, pydocs
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder

Load = Callable[[], tuple[MSADecoder, Tokenizer, dict[str, str]]]  # picklable
_ANSWER = InterleaveLimits(answer_tokens=16)
_TOGETHER = 4  # questions routed at once: scores of all documents are held for each
_CHARACTERS = 5  # of a token, at most: enough text is read


def scale(load: Load, sizes: Sizes) -> list[dict[str, Any]]:
    """A row per bank of generated states (see generate.py), each opened by a process of its own."""
    rows = []
    for tokens in sizes.scale:
        log(f"memory: scale, {tokens:,} tokens")
        with tempfile.TemporaryDirectory(prefix="msa-bench-") as folder:
            path = Path(folder) / "bank"
            build_s = in_process(_generate, load, path, tokens, sizes)
            rows.append({**in_process(_opened, load, path, sizes), "build_s": build_s})
    return rows


def linearity(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Search time of a million tokens in the smallest and the largest bank."""
    first, last = (min(rows, key=lambda r: r["tokens"]), max(rows, key=lambda r: r["tokens"]))
    each = [row["route_best_ms"] / row["tokens"] * 1e6 for row in (first, last)]
    return {
        "from_tokens": first["tokens"],
        "to_tokens": last["tokens"],
        "ms_per_mtoken": [round(x, 4) for x in each],
        "ratio": round(each[1] / each[0], 2),
    }


def real(load: Load, sizes: Sizes, corpus: Path | None) -> dict[str, Any]:
    """A bank of real text, encoded for real."""
    log(f"memory: real text from {corpus or 'pydocs'}")
    with tempfile.TemporaryDirectory(prefix="msa-bench-") as folder:
        path = Path(folder) / "bank"
        built = in_process(_encode_real, load, path, sizes, corpus)
        found = in_process(_opened, load, path, sizes)
    for name in ("questions", "found", "answered"):
        del found[name]  # nothing was planted
    return {"corpus": str(corpus or "pydocs"), **found, **built}


def append(load: Load, sizes: Sizes) -> dict[str, Any]:
    """What adding documents to a small and to a large bank costs, until a question finds them."""
    rows = []
    for tokens in sizes.append:
        log(f"memory: append to {tokens:,} tokens")
        with tempfile.TemporaryDirectory(prefix="msa-bench-") as folder:
            path = Path(folder) / "bank"
            in_process(_generate, load, path, tokens, sizes)
            rows.append(in_process(_appended, load, path, sizes))
    return {"rows": rows, "ratio": round(rows[-1]["visible_s"] / rows[0]["visible_s"], 2)}


def _generate(load: Load, path: Path, tokens: int, sizes: Sizes) -> float:
    took, _ = seconds(lambda: generate_bank(*load(), path, tokens, sizes.planted, sizes.sample))
    return round(took, 1)


@torch.inference_mode()
def _opened(load: Load, path: Path, sizes: Sizes) -> dict[str, Any]:
    model, tokenizer, fingerprint = load()
    asked = read_questions(path)
    _forget_pages(path)
    cold_s, live = seconds(lambda: LiveBank(path, model, fingerprint))
    live.close()
    open_s, live = seconds(lambda: LiveBank(path, model, fingerprint))
    view, bank = live.view, live.bank
    engine = MemoryEngine(model, tokenizer, view, _TOGETHER)
    answers = [engine.ask([each.question], "memory", _ANSWER)[0] for each in asked[: sizes.repeats]]
    said = engine.ask([each.question for each in asked], "memory", _ANSWER)
    right = [answer.answer == each.answer for answer, each in zip(said, asked, strict=True)]
    found = _found(engine, asked, model.config.router.top_k)
    queries = layer_queries(model, tokenizer, view, asked[0].question)
    search = searching(view, queries)
    search()
    held = process_gb()  # before the floor's matrices
    of_layers = {
        layer: [segment.pooled[layer].key.to(model.device) for segment in bank.segments]
        for layer in queries
    }
    keys, one = [x for each in of_layers.values() for x in each], of_layers[next(iter(queries))]
    query, _ = next(iter(queries.values()))
    sides = {"search": search, "read": read_all(keys), "gemm": multiply(one, query)}
    times = in_turns(sides, sizes.repeats)
    times["read"] = [ms / len(queries) for ms in times["read"]]
    live.close()
    info = bank.info()
    route = against_floor(times, len(queries))
    return {
        **{name: info[name] for name in ("tokens", "chunks", "documents")},
        "open_s": round(open_s, 3),
        "open_cold_s": round(cold_s, 3),
        **route,
        "ms_per_mtoken": round(route["route_ms"] / info["tokens"] * 1e6, 3),
        "question_tokens": len(query),
        "layers": len(queries),
        "answer_ms": round(statistics.median(a.seconds for a in answers) * 1e3, 1),
        "rss_gb": held["peak"],
        "rss": held,
        "bank_gb": round(info["bytes"] / 1e9, 3),
        "questions": len(asked),
        "found": found,
        "answered": round(sum(right) / len(right), 3),
        "threads": torch.get_num_threads(),
    }


def _found(engine: MemoryEngine, asked: list[Planted], top: int) -> float:
    """Share of questions whose document is among the best by the layers' vote."""
    chosen = engine.route([each.question for each in asked])
    hits = [
        each.number in [number for number, _ in one.voted[:top]]
        for one, each in zip(chosen, asked, strict=True)
    ]
    return round(sum(hits) / len(hits), 3)


def layer_queries(
    model: MSADecoder, tokenizer: Tokenizer, view: MemoryView, question: str
) -> dict[int, tuple[Tensor, Tensor]]:
    """What the router layers search for when a question is asked: query vectors, query_cu."""
    prefill = prefill_pieces(model, tokenizer, view, [prompt_pieces(question)])
    routings = {layer: reading.routing for layer, reading in prefill.selected.items()}
    return {layer: (routing.query, routing.query_cu) for layer, routing in routings.items()}


def searching(view: MemoryView, queries: dict[int, tuple[Tensor, Tensor]]) -> Callable[[], Any]:
    """The searches of one question in all router layers, winners' states read."""
    return lambda: [view.search(layer, *query) for layer, query in queries.items()]


def _encode_real(load: Load, path: Path, sizes: Sizes, corpus: Path | None) -> dict[str, Any]:
    model, tokenizer, fingerprint = load()
    documents = _real_documents(tokenizer, corpus, sizes.real)
    took, _ = seconds(lambda: build_bank(path, model, tokenizer, documents, fingerprint))
    bank = BankSnapshot.open(path)
    tokens = bank.info()["tokens"]
    asked = [
        Planted(f"What is said about {(each.title or each.text)[:60]}?", each.number, "")
        for each in islice(bank, 0, None, max(1, len(bank) // sizes.repeats))
    ]
    replace_file(questions_of(path), json.dumps([vars(each) for each in asked[: sizes.repeats]]))
    return {"encode_s": round(took, 1), "tokens_per_s": round(tokens / took, 1)}


def _real_documents(
    tokenizer: Tokenizer, corpus: Path | None, tokens: int
) -> Iterator[StoredDocument]:
    """Documents until there is text for `tokens` tokens, long ones in parts."""
    source = pydocs(tokenizer)[0] if corpus is None else _corpora(corpus)

    def enough() -> Iterator[StoredDocument]:
        left = tokens * _CHARACTERS
        for document in source:
            if left <= 0:
                return
            left -= len(document.text)
            yield document

    return Splitting(tokenizer)(enough())


def _corpora(folder: Path) -> Iterator[StoredDocument]:
    """Every *.jsonl(.gz) of a folder that holds documents: its own, or its datasets' corpora."""
    files = sorted(f for f in folder.glob("*.jsonl*") if f.suffix in (".jsonl", ".gz"))
    files = files or sorted(folder.glob("*/corpus.jsonl*"))
    if not files:
        raise DataError(f"corpus {folder}: it has no *.jsonl, *.jsonl.gz or */corpus.jsonl(.gz)")
    for file in files:
        for document in CorpusFile(file).documents():
            id = f"{file.parent.name}/{file.name}/{document.id}" if document.id else ""
            yield replace(document, id=id)


@torch.inference_mode()
def _appended(load: Load, path: Path, sizes: Sizes) -> dict[str, Any]:
    model, tokenizer, fingerprint = load()
    live = LiveBank(path, model, fingerprint)
    before = live.bank.info()
    first = before["next_number"]
    chunk = model.config.router.chunk_size
    drawn = needles(tokenizer, sizes.added, seed=1, tokens=chunk)
    documents = [
        StoredDocument(first + i, document.text, id=f"added-{i}")
        for i, (document, _, _) in enumerate(drawn)
    ]
    dtype = live.bank.manifest.form.torch_dtype
    encode_s, batches = seconds(
        lambda: list(encode_documents(model, tokenizer, documents, dtype=dtype))
    )
    commit_s, _ = seconds(lambda: _commit(path, fingerprint, batches))
    refresh_s, view = seconds(live.refresh)
    engine = MemoryEngine(model, tokenizer, view, _TOGETHER)
    began = time.perf_counter()
    [first_asked] = engine.route([drawn[0][1]])
    query_s = time.perf_counter() - began
    asked = [Planted(q, first + i, a) for i, (_, q, a) in enumerate(drawn)][: sizes.planted]
    row = {
        "tokens": before["tokens"],
        "added": len(documents),
        "encode_s": round(encode_s, 3),
        "commit_s": round(commit_s, 3),
        "refresh_s": round(refresh_s, 3),
        "visible_s": round(encode_s + commit_s + refresh_s, 3),
        "query_ms": round(query_s * 1e3, 1),
        "added_found": any(number >= first for number, _ in first_asked.voted),
        "found": _found(engine, asked, model.config.router.top_k),
        "visible": len(view) - before["documents"],
    }
    live.close()
    return row


def _commit(path: Path, fingerprint: dict[str, str], batches: list) -> None:
    with BankWriter(path, "add", fingerprint) as writer:
        writer.add(batches)


def _forget_pages(folder: Path) -> None:
    """Asks the kernel to drop a folder's files from its page cache: the next reader is cold."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
