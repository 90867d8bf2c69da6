"""`msa data mine`: negatives that a trained router finds, for the next run's data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msa_train.commands.output import add_config, config_arguments
from msa_train.commands.placement import add_placement, placement


def register(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "mine", help="hard negatives that a trained router finds (data.datasets.*.negatives.mined)"
    )
    parser.add_argument("export", type=Path, help="folder of an exported model")
    parser.add_argument("dataset", help="its name in data.datasets of the config")
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument("--count", type=int, default=8, help="of each question (default 8)")
    add_placement(parser)
    parser.set_defaults(run=_mine)


def _mine(options: argparse.Namespace) -> int:
    from data_pipeline import files
    from msa_train.config import load_config
    from msa_train.errors import ConfigError
    from msa_train.evaluation.asking import Asker
    from msa_train.evaluation.mining import mine
    from msa_train.interop.export import load_export

    config = load_config(config_arguments(options))
    if options.dataset not in config.data.datasets:
        known = ", ".join(config.data.datasets) or "none"
        raise ConfigError(f"{options.dataset!r} is not in data.datasets: there are {known}")
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: remove it, or give another --out")
    if options.count < 1:
        raise ConfigError(f"--count {options.count}: give 1 or more")
    loaded = load_export(options.export, placement(options))
    tokenizer = loaded.tokenizer
    asker = Asker(loaded.model, tokenizer, config.evaluation.batch_contexts)
    dataset = config.data.datasets[options.dataset]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    total = 0
    with files.whole(options.out) as partial, partial.open("w") as file:
        for id, negatives in mine(
            asker, dataset, tokenizer, config.path / "prepared", options.count
        ):
            file.write(json.dumps({"id": id, "negatives": negatives}, ensure_ascii=False) + "\n")
            total += len(negatives)
    print(f"{total} negatives in {options.out}")
    return 0
