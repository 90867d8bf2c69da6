"""`msa conformance` and `msa bench`: numbers to hold this implementation against."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_json, print_json
from msa_train.errors import ConfigError

_BENCHMARKS = {
    "kernels": "msa_kernels.bench:run",
    "layouts": "msa_train.bench.layouts:measure",
    "train": "msa_train.bench.train:measure",
    "candidates": "msa_train.commands.measure:candidates",
    "memory": "msa_train.commands.measure:memory",
    "serve": "msa_train.bench.serve:measure",
}
_INPUTS = {"candidates": ("export", "bank", "questions")}
_CHOICES = {  # may be given or not
    "memory": ("export", "corpus", "quick", "parts"),
    "serve": ("export", "bank", "url", "clients", "seconds", "retrieval"),
}
_OPTIONS = (
    "export", "bank", "questions", "corpus", "quick", "parts", "url", "clients", "seconds",
    "retrieval",
)  # fmt: skip


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "conformance", help="compare with numbers that the authors' code produced"
    )
    parser.add_argument("directory", type=Path, help="holds a folder per case, with meta.json")
    parser.set_defaults(run=_conformance)
    parser = commands.add_parser("bench", help="measure speed and memory against a baseline")
    parser.add_argument("name", help=", ".join(_BENCHMARKS))
    for name, meaning in (
        ("export", "candidates, memory, serve: folder of an exported model"),
        ("bank", "candidates, serve: memory bank that it built"),
        ("questions", "candidates: questions.<split>.jsonl(.gz) of a dataset folder"),
        ("corpus", "memory: folder of *.jsonl(.gz) or */corpus.jsonl(.gz) (without: pydocs)"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=f"for {meaning}")
    parser.add_argument("--quick", action="store_true", default=None, help="for memory: tiny sizes")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="for memory: only these parts")
    parser.add_argument("--url", help="for serve: a server that runs, in place of export and bank")
    parser.add_argument("--clients", type=int, help="for serve: that ask at once (default 32)")
    parser.add_argument("--seconds", type=float, help="for serve: how long (default 60)")
    parser.add_argument(
        "--retrieval", choices=("generate", "router", "memory"), help="for serve: as in msa ask"
    )
    add_json(parser)
    parser.set_defaults(run=_bench)


def _conformance(options: argparse.Namespace) -> int:
    from msa_train.errors import ConformanceError
    from msa_train.interop.conformance import find_cases, run_case

    passed = []
    for case in find_cases(options.directory):
        report = run_case(case)
        print(report.line(), flush=True)
        passed.append(report.passed)
    print(f"{sum(passed)} of {len(passed)} cases pass")
    return 0 if all(passed) else ConformanceError.exit_code


def _bench(options: argparse.Namespace) -> int:
    if options.name not in _BENCHMARKS:
        known = ", ".join(_BENCHMARKS)
        raise ConfigError(
            f"bench {options.name!r}: there is no such benchmark; choose from {known}"
        )
    module, function = _BENCHMARKS[options.name].split(":")
    result = getattr(import_module(module), function)(**_inputs(options))
    if options.json:
        print_json(result)
    else:
        for row in _rows(result):
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


def _rows(result: Any) -> Iterator[dict[str, Any]]:
    """A line per row; rows of a benchmark in parts begin with the part's name."""
    if isinstance(result, list):
        yield from result
        return
    for part, rows in result.items():
        for row in rows if isinstance(rows, list) else [rows]:
            yield {"part": part, **row} if isinstance(row, dict) else {part: row}


def candidates(export: Path, bank: Path, questions: Path) -> list[dict[str, Any]]:
    from data_pipeline.dataset import read_questions
    from msa_train.bench.candidates import certified_candidates
    from msa_train.interop.export import load_export
    from msa_train.memory.bank.snapshot import BankSnapshot

    model, _, tokenizer, fingerprint = load_export(export)
    asked = [question.question for _, question in read_questions(questions)]
    return certified_candidates(model, tokenizer, BankSnapshot.open(bank, fingerprint), asked)


def memory(
    export: Path | None = None,
    corpus: Path | None = None,
    quick: bool = False,
    parts: list[str] | None = None,
) -> dict[str, Any]:
    """Without an export: the quickstart's geometry with random weights, and a tokenizer trained on
    the spot."""
    from msa_train.bench.memory import PARTS, WITHOUT_MODEL, known_parts, measure
    from msa_train.bench.sizes import FULL, QUICK
    from msa_train.interop.export import load_export

    chosen = known_parts(parts or PARTS)
    if export is not None:
        load_export(export)  # what is wrong with it is said at once
        load = partial(_loaded, export)
    else:
        needed = not set(chosen) <= set(WITHOUT_MODEL)
        load = partial(_untrained, _bench_tokenizer() if needed else None)
    found = measure(load, QUICK if quick else FULL, corpus, chosen)
    return {**found, "model": str(export) if export else "random weights"}


def _loaded(export: Path) -> tuple[Any, Any, dict[str, str]]:
    from msa_train.interop.export import load_export

    model, _, tokenizer, fingerprint = load_export(export)
    return model, tokenizer, fingerprint


def _untrained(tokenizer: Any) -> tuple[Any, Any, dict[str, str]]:
    from msa_train.bench.train import MODEL
    from msa_train.interop.weights import load_published
    from msa_train.model.decoder import MSADecoder
    from msa_train.model.weights import initial_reader, weight_shapes

    read = initial_reader(MODEL, seed=0)
    weights = {name: read(name) for name in weight_shapes(MODEL)}
    model = load_published(MSADecoder(MODEL), weights)
    return model.eval().requires_grad_(False), tokenizer, {"weights": "untrained"}


def _bench_tokenizer() -> Any:
    from data_pipeline.settings import DataConfig
    from data_pipeline.tokenizer_sentencepiece import train_sentencepiece
    from data_pipeline.tokenizer_training import corpus_texts
    from msa_train.bench.train import MODEL

    texts = corpus_texts(DataConfig(), ("niah", "pydocs"))
    return train_sentencepiece(texts, MODEL.vocab_size)


def _inputs(options: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark needs, and of what it may have, what is given; nothing else may be."""
    needed, choices = _INPUTS.get(options.name, ()), _CHOICES.get(options.name, ())
    given = {}
    for name in _OPTIONS:
        value = getattr(options, name)
        if name not in choices and (value is not None) != (name in needed):
            verb = "needs" if name in needed else "takes no"
            raise ConfigError(f"bench {options.name} {verb} --{name}")
        if value is not None:
            given[name] = value
    return given
