"""`msa train`: start the deepspeed launcher on this machine."""

from __future__ import annotations

import argparse

from msa_train.commands.output import add_config, config_arguments


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train", help="train on this machine (what `deepspeed launch/train.py` does)"
    )
    add_config(parser)
    parser.add_argument("--ranks", type=int, default=1, help="processes (GPUs) to start")
    parser.add_argument("--resume", action="store_true", help="continue the newest checkpoint")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from msa_train.training.launch import launch

    return launch(config_arguments(options), options.ranks, options.resume)
