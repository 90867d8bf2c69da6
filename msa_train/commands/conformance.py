"""`msa conformance`: compare with numbers that the authors' code produced."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "conformance", help="compare with numbers that the authors' code produced"
    )
    parser.add_argument("directory", type=Path, help="holds a folder per case, with meta.json")
    parser.set_defaults(run=_conformance)


def _conformance(options: argparse.Namespace) -> int:
    from msa_train.errors import ConformanceError
    from msa_train.interop.conformance.cases import find_cases, run_case

    passed = []
    for case in find_cases(options.directory):
        found = run_case(case)
        print(found.line(), flush=True)
        passed.append(found.passed)
    print(f"{sum(passed)} of {len(passed)} cases pass")
    return 0 if all(passed) else ConformanceError.exit_code
