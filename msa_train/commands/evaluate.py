"""`msa eval`: how well an exported model remembers, as its memory grows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_config, add_json, config_arguments, print_json
from msa_train.commands.placement import add_placement, placement


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval", help="needle tasks at growing memory lengths, real text beside BM25"
    )
    parser.add_argument("export", type=Path, help="folder of an exported model")
    add_config(parser)
    parser.add_argument("--out", type=Path, help="folder of the report (default: OUTPUT)")
    add_placement(parser)
    add_json(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from msa_train.config import load_config
    from msa_train.evaluation.evaluate import evaluate
    from msa_train.evaluation.report import tables
    from msa_train.interop.export import load_export

    config = load_config(config_arguments(options))
    loaded = load_export(options.export, placement(options))
    out = options.out or config.path
    out.mkdir(parents=True, exist_ok=True)

    def show(report: dict[str, Any]) -> None:
        if options.json:
            print_json(report)
        else:
            Console().print(tables(report))

    evaluate(loaded.model, loaded.tokenizer, config, out, show)
    if not options.json:
        print(f"report and pictures: {out}")
    return 0
