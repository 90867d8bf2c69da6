"""`msa train`: start the deepspeed launcher."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_train.commands.output import add_config, config_arguments


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("train", help="train (what `deepspeed launch/train.py` does)")
    add_config(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="processes (GPUs) to start on this machine (default 1)",
    )
    parser.add_argument(
        "--include",
        default="",
        metavar="SLOTS",
        help="in place of --ranks: one on each of these GPUs, as DeepSpeed names them "
        "(localhost:0,2, or of a hostfile HOST:SLOT,SLOT@HOST)",
    )
    parser.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="machines and their GPUs, as DeepSpeed reads them (a line each: HOST slots=N); they "
        "are reached by ssh, and share this folder and the output",
    )
    parser.add_argument("--resume", action="store_true", help="continue the newest checkpoint")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="go on from the newest checkpoint by itself after a rank, a machine or the launcher "
        "died, at most N times without a new checkpoint in between (default 0)",
    )
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from msa_train.training.launch import launch

    return launch(
        config_arguments(options),
        options.ranks,
        options.resume,
        options.hostfile,
        options.include,
        options.max_restarts,
    )
