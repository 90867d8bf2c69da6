"""How commands print: JSON alone on standard output, or plain text."""

from __future__ import annotations

import argparse
import json
from typing import Any

RETRIEVALS = ("generate", "router", "memory")  # interleave.Mode, without what it imports


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config FILE; every other `--dotted.key value` overrides a setting of it."""
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE",
        help="YAML of a run, see configs/; given again, the later file's settings win",
    )  # fmt: skip
    parser.set_defaults(takes_overrides=True)
    parser.epilog = "Any setting can be overridden: --training.zero_stage 2 --model.router.top_k 8"


def add_retrieval(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--retrieval", choices=RETRIEVALS,
        help="who names the documents to read: the model (generate, as published), the routers' "
        "vote, or nobody: answer from pooled memory alone (default: generate, and router for a "
        "model of which no layer reads pooled memory)",
    )  # fmt: skip


def add_hybrid(parser: argparse._ActionsContainer, meaning: str) -> None:
    parser.add_argument(
        "--hybrid", choices=("bm25",), help=f"{meaning} (needs 'msa-train[hybrid]'; default: no)"
    )


def config_arguments(options: argparse.Namespace) -> list[str]:
    """What load_config takes, of a command's --config or CONFIG and its overrides."""
    files = [word for path in options.config for word in ("--config", path)]
    return [*files, *options.overrides]


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))
