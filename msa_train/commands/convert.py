"""`msa data convert` and `msa data formats`: published datasets become dataset folders."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from msa_train.commands.output import add_json, print_json

# options of formats -> whether a path follows, and the help
_OPTIONS = {
    "evidence": (True, "triviaqa: folder with the documents, wikipedia/ and web/"),
    "collection": (True, "msmarco: collection.tsv, for triples of ids and qrels"),
    "queries": (True, "msmarco: queries.tsv, for triples of ids and qrels"),
    "questions": (True, "text: questions about the files: jsonl, csv or tsv"),
    "knowledge": (True, "kilt: the knowledge source, a jsonl file"),
    "all_passages": (False, "kilt: all of the knowledge source, not only what is asked about"),
    "stories": (False, "narrativeqa: whole stories instead of summaries"),
}


def register(actions: argparse._SubParsersAction) -> None:
    convert = actions.add_parser("convert", help="make a dataset folder of a published dataset")
    convert.add_argument("format", help="see `msa data formats`")
    convert.add_argument("inputs", nargs="+", type=Path, metavar="input", help="files or a folder")
    convert.add_argument("--out", required=True, type=Path, help="dataset folder to make")
    convert.add_argument(
        "--split",
        help="train (default), or several with commas: one for each file, or those to take of a "
        "folder",
    )
    for name, (has_path, shown) in _OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if has_path:
            convert.add_argument(flag, type=Path, metavar="PATH", help=shown)
        else:
            convert.add_argument(flag, action="store_true", help=shown)
    convert.add_argument(
        "--strict", action="store_true",
        help="refuse judgements of unknown queries and passages, which are counted otherwise",
    )  # fmt: skip
    add_json(convert)
    convert.set_defaults(run=_convert)
    formats = actions.add_parser("formats", help="the formats that convert reads")
    add_json(formats)
    formats.set_defaults(run=_formats)


def _convert(options: argparse.Namespace) -> int:
    from data_pipeline.converters import convert

    given = {name: value for name in _OPTIONS if (value := getattr(options, name))}
    splits = options.split.split(",") if options.split is not None else ()
    converted = convert(
        options.format, options.inputs, options.out, splits, options.strict, **given
    )
    if options.json:
        print_json(asdict(converted))
        return 0
    print(
        f"{converted.folder}: {converted.passages:,} passages "
        f"({converted.repeated_passages:,} repetitions of one not written)"
    )
    for split, count in converted.questions.items():
        print(f"  {split}: {count:,} questions")
    for what, count in converted.left_out.items():
        print(f"  left out: {count:,} {what}")
    return 0


def _formats(options: argparse.Namespace) -> int:
    from data_pipeline.converters import CONVERTERS

    described = {name: converter.description for name, converter in CONVERTERS.items()}
    if options.json:
        print_json(described)
        return 0
    width = max(map(len, described))
    for name, description in described.items():
        print(f"{name:{width}}  {description}")
    return 0
