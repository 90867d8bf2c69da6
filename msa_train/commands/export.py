"""`msa export`: a checkpoint as a folder that serves."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_train.commands.output import add_json, print_json


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export", help="checkpoint -> safetensors with the published names, config, tokenizer"
    )
    parser.add_argument("source", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument(
        "--best",
        action="store_true",
        help="a run's best checkpoint, by its training.best (otherwise its newest good one)",
    )
    add_json(parser)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from msa_train.interop.export import export
    from msa_train.training.tracking.start import log_export

    exported = export(options.source, options.target, options.best)
    log_export(exported.checkpoint, options.target)
    if options.json:
        print_json({"export": str(options.target), "fingerprint": exported.fingerprint})
    else:
        print(f"{options.target}: weights {exported.fingerprint['weights'][:12]}")
    return 0
