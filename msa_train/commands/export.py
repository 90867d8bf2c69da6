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
    add_json(parser)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from msa_train.interop.export import export

    fingerprint = export(options.source, options.target)
    if options.json:
        print_json({"export": str(options.target), "fingerprint": fingerprint})
    else:
        print(f"{options.target}: weights {fingerprint['weights'][:12]}")
    return 0
