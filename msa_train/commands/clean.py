"""`msa data clean`: duplicates, evaluation text and poor passages out of a dataset folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from msa_train.commands.output import add_json, print_json

# option -> (type, what it bounds); defaults are QualityRules'
_QUALITY = {
    "min-words": (int, "words of a passage (default 5)"),
    "max-words": (int, "words of a passage (default 100000)"),
    "min-letters": (float, "share of letters among a passage's characters (default 0.5)"),
    "max-repeated-lines": (float, "share of lines that repeat an earlier one (default 0.3)"),
    "max-repeated-words": (float, "share of words in repeated 10-grams (default 0.3)"),
    "min-word-length": (float, "mean length of a passage's words (default 2)"),
    "max-word-length": (float, "mean length of a passage's words (default 12)"),
    "max-symbols": (float, "number signs and ellipses a word (default 0.1)"),
    "max-question-words": (int, "words of a question (default 200)"),
    "max-answer-words": (int, "words of an answer (default 200)"),
}


def register(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "clean", help="remove duplicates, evaluation text and poor passages of a dataset folder"
    )
    parser.add_argument("dataset", metavar="DATASET", help="dataset folder to read")
    parser.add_argument("--out", required=True, metavar="DIR", help="dataset folder to make")
    parser.add_argument(
        "--near", type=float, default=0.8, metavar="SHARE",
        help="similarity from which passages are near-duplicates (default 0.8; 0: exact alone)",
    )  # fmt: skip
    parser.add_argument(
        "--against", action="extend", nargs="+", default=[], metavar="EVALSET[:SPLIT]",
        help="evaluation sets that training questions must not come from",
    )  # fmt: skip
    parser.add_argument(
        "--ngram", type=int, default=13, metavar="N",
        help="report passages that share N words with an evaluation question (default 13)",
    )  # fmt: skip
    parser.add_argument(
        "--drop-passages", action="store_true",
        help="remove passages that copy an evaluation set's positives, not their questions alone",
    )  # fmt: skip
    for name, (kind, said) in _QUALITY.items():
        bound = "lowest" if name.startswith("min") else "highest"
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=f"{bound} {said}")
    parser.add_argument(
        "--answer-in-positive", action="store_true",
        help="drop questions of which no answer stands in a positive passage",
    )  # fmt: skip
    parser.add_argument("--report", metavar="FILE", help="JSON report (default DIR.report.json)")
    parser.add_argument(
        "--examples", type=int, default=5, metavar="N", help="examples of each rule (default 5)"
    )
    add_json(parser)
    parser.set_defaults(run=_clean)


def _clean(options: argparse.Namespace) -> int:
    from data_pipeline.cleaning.clean import CleanConfig, clean_dataset
    from data_pipeline.cleaning.quality import QualityRules

    names = [name.replace("-", "_") for name in _QUALITY]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    config = CleanConfig(
        near=options.near,
        against=tuple(options.against),
        ngram=options.ngram,
        drop_passages=options.drop_passages,
        quality=QualityRules(**given, answer_in_positive=options.answer_in_positive),
        examples=options.examples,
    )
    out = Path(options.out)
    report = Path(options.report) if options.report else out.with_name(f"{out.name}.report.json")
    result = clean_dataset(options.dataset, out, report, config)
    if options.json:
        print_json(result)
    else:
        _print(result)
        print(f"report: {report}", file=sys.stderr)
    return 0


def _print(result: dict[str, Any]) -> None:
    _print_part("passages", result["passages"])
    for split, part in result["questions"].items():
        _print_part(f"questions.{split}", part)
    for one in result["against"]:
        print(
            f"against {one['name']}: {one['questions']} questions, "
            f"{one['positive_passages']} positive passages"
        )
        _print_rules(one["found"])


def _print_part(name: str, part: dict[str, Any]) -> None:
    print(f"{name}: {part['read']} read, {part['written']} written")
    _print_rules(part["rules"])


def _print_rules(rules: dict[str, Any]) -> None:
    for rule, entry in rules.items():
        print(f"  {rule}: {entry['count']}")
