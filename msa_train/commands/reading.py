"""`msa data reading`: a dataset from which a model learns to answer from what its router brings."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_train.commands.flags import add_flags, from_flags
from msa_train.commands.output import add_json, print_json
from msa_train.commands.placement import add_placement, placement
from msa_train.router.settings import ReadingSettings


def register(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "reading", help="questions and what a router brings for each, to learn reading from"
    )
    parser.add_argument("export", type=Path, help="folder of an export with a pooled router")
    parser.add_argument(
        "corpus", metavar="CORPUS",
        help="a dataset folder, a .jsonl or .jsonl.gz file of documents, or the word pydocs",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    parser.add_argument(
        "--split", default="clozes",
        help="of the dataset's questions; clozes (default): made of the texts, no labels",
    )  # fmt: skip
    parser.add_argument(
        "--means", type=Path, metavar="DIR", help="chunk means, as `msa router` keeps them"
    )
    add_flags(parser, ReadingSettings)
    add_placement(parser)
    add_json(parser)
    parser.set_defaults(run=_reading)


def _reading(options: argparse.Namespace) -> int:
    from msa_train.router.reading import write_reading

    settings = from_flags(ReadingSettings, options)
    report = write_reading(
        options.export, options.corpus, options.out, options.split, settings, options.means,
        placement(options),
    )  # fmt: skip
    if options.json:
        print_json(report)
        return 0
    counts = report["questions"]
    print(
        f"{report['target']}: {report['passages']:,} passages, {counts['train']:,} questions to "
        f"train on and {counts['held_out']:,} held out, {report['seconds']:.0f} s"
    )
    print(f"the router finds a right passage first for {report['router_first']:.0%} of them")
    return 0
