"""`msa conformance` and `msa bench`: numbers to hold this implementation against."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_json, print_json
from msa_train.errors import ConfigError

_BENCHMARKS = {
    "kernels": "msa_kernels.bench:run",
    "layouts": "msa_train.training.bench_layouts:measure",
    "train": "msa_train.training.bench:measure",
    "candidates": "msa_train.commands.measure:candidates",
}
_INPUTS = {"candidates": ("export", "bank", "questions")}


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "conformance", help="compare with numbers that the authors' code produced"
    )
    parser.add_argument("directory", type=Path, help="holds a folder per case, with meta.json")
    parser.set_defaults(run=_conformance)
    parser = commands.add_parser("bench", help="measure speed and memory against a baseline")
    parser.add_argument("name", help=", ".join(_BENCHMARKS))
    for name, meaning in (
        ("export", "folder of an exported model"),
        ("bank", "memory bank that it built"),
        ("questions", "questions.<split>.jsonl(.gz) of a dataset folder"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=f"for candidates: {meaning}")
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
        for row in result if isinstance(result, list) else [result]:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


def candidates(export: Path, bank: Path, questions: Path) -> list[dict[str, Any]]:
    from data_pipeline.dataset import read_questions
    from msa_train.interop.export import load_export
    from msa_train.memory.candidates import certified_candidates
    from msa_train.memory.storage.bank import MemoryBank

    model, _, tokenizer, fingerprint = load_export(export)
    asked = [question.question for _, question in read_questions(questions)]
    return certified_candidates(model, tokenizer, MemoryBank.open(bank, fingerprint), asked)


def _inputs(options: argparse.Namespace) -> dict[str, Path]:
    """The files a benchmark needs; no more and no less may be given."""
    needed = _INPUTS.get(options.name, ())
    for name in ("export", "bank", "questions"):
        if (getattr(options, name) is not None) != (name in needed):
            verb = "needs" if name in needed else "takes no"
            raise ConfigError(f"bench {options.name} {verb} --{name}")
    return {name: getattr(options, name) for name in needed}
