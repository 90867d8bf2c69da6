"""`msa router`: start, fit, probe and compare routers, and ask a model over what they find."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msa_train.commands.flags import add_flags, from_flags
from msa_train.commands.output import add_json, print_json
from msa_train.commands.placement import add_placement, placement
from msa_train.evaluation.settings import ReadingTest
from msa_train.router.settings import RECALL_AT, FitSettings, ProbeSettings, StartSettings

_CORPUS = (
    "a dataset folder, a .jsonl or .jsonl.gz file of documents, or the word pydocs: the "
    "documentation of this Python's standard library"
)


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "router", help="start, fit, probe, compare and ask routers of exports"
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    start = _action(actions, "start", "a router that works untrained: whitened chunk means", _start)
    start.add_argument("corpora", nargs="+", metavar="CORPUS", help=f"any text: {_CORPUS}")
    _add_target(start)
    add_flags(start, StartSettings)
    fit = _action(actions, "fit", "learn it from questions, on cached chunk means alone", _fit)
    fit.add_argument("corpora", nargs="+", metavar="CORPUS", help=_CORPUS)
    _add_target(fit)
    _add_split(fit)
    add_flags(fit, FitSettings)
    probe = _action(actions, "probe", "which layers route best, before anything is learned", _probe)
    probe.add_argument("corpus", metavar="CORPUS", help=_CORPUS)
    _add_split(probe)
    add_flags(probe, ProbeSettings)
    compare = actions.add_parser(
        "compare", help="who finds the right documents: routers, BM25, ..."
    )
    compare.add_argument("exports", nargs="+", type=Path, help="exports with pooled routers")
    compare.add_argument(
        "--data", nargs="+", required=True, metavar="CORPUS", help=f"to find in: {_CORPUS}"
    )
    compare.add_argument(
        "--dense", type=Path, metavar="DIR", help="a sentence encoder, as transformers saves one"
    )
    compare.add_argument(
        "--pooled", action="store_true", help="all corpora in one bank, equal texts once"
    )
    compare.add_argument("--per-layer", action="store_true", help="each router layer alone as well")
    _add_means(compare)
    _add_split(compare)
    add_placement(compare)
    add_json(compare)
    compare.set_defaults(run=_compare)
    _register_answers(actions)


def _register_answers(actions: Any) -> None:
    answers = _action(
        actions, "answers", "exact match and F1 over the texts that a search brings", _answers
    )
    answers.add_argument(
        "--data", nargs="+", required=True, metavar="DATASET", help="folders with questions"
    )
    answers.add_argument("--split", required=True, help="of the datasets' questions")
    _add_means(answers)
    add_flags(answers, ReadingTest)


def _action(actions: Any, name: str, meaning: str, run: Callable) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=meaning)
    parser.add_argument("export", type=Path, help="folder of an export, or of `msa import`")
    add_placement(parser)
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    _add_means(parser)


def _add_means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--means", type=Path, metavar="DIR",
        help="keep means of chunks and questions here, for the next of these commands "
        "(default: nowhere)",
    )  # fmt: skip


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        default="self-made",
        help="of the datasets' questions; self-made (default): titles and sentences of the "
        "documents, and questions made of them, no labels",
    )


def _start(options: argparse.Namespace) -> int:
    from msa_train.router.exports import start_router

    settings = from_flags(StartSettings, options)
    report = start_router(
        options.export, options.corpora, options.out, settings, options.means, placement(options)
    )
    if options.json:
        print_json(report)
        return 0
    print(
        f"{_made(report)}: {report['documents']:,} documents, {report['chunks']:,} chunks, "
        f"{report['seconds']:.0f} s"
    )
    return 0


def _fit(options: argparse.Namespace) -> int:
    from msa_train.router.exports import fit_router

    settings = from_flags(FitSettings, options)
    report = fit_router(
        options.export,
        options.corpora,
        options.out,
        options.split,
        settings,
        options.means,
        placement(options),
    )
    if options.json:
        print_json(report)
        return 0
    print(f"{_made(report)}: {report['seconds']:.0f} s, {report['fit_seconds']:.0f} of them steps")
    print("recall@1 / 5 / 16 of held-out questions")
    for look in report["looks"]:
        best = "  <- kept" if look["step"] == report["best_step"] else ""
        found = "  ".join(f"{name} {_recall(x)}" for name, x in look["held_out"].items())
        print(f"  step {look['step']:>4}  {found}{best}")
    if report["best_step"] == 0:
        print("nothing was better than the start: the router is as it was")
    return 0


def _probe(options: argparse.Namespace) -> int:
    from msa_train.router.exports import probe_layers

    settings = from_flags(ProbeSettings, options)
    report = probe_layers(
        options.export, options.corpus, options.split, settings, placement(options)
    )
    if options.json:
        print_json(report)
        return 0
    print(
        f"{report['documents']:,} documents, {report['questions']:,} questions; recall@1 / 5 / 16"
    )
    for each in report["layers"]:
        print(f"  layer {each['layer']:>3}  {_recall(each['recall'])}")
    layers = ",".join(map(str, report["chosen"]))
    print(f"best together: --layers {layers}  {_recall(report['vote'])}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from msa_train.evaluation.retrieval import compare_retrieval

    report = compare_retrieval(
        options.exports, options.data, options.split, options.means, placement(options),
        options.dense, pooled=options.pooled, per_layer=options.per_layer,
    )  # fmt: skip
    if options.json:
        print_json(report)
        return 0
    for name, found in report["corpora"].items():
        print(f"{name}: {found['documents']:,} documents, {found['questions']:,} questions")
        print(f"  {'recall@1 / 5 / 16':>40}")
        for method, row in found["recall"].items():
            recall = _recall([row[f"recall@{k}"] for k in RECALL_AT])
            low, high = row["interval@1"]
            print(f"  {method:<24}{recall}   @1 {low:.3f} to {high:.3f}")
    return 0


def _answers(options: argparse.Namespace) -> int:
    from msa_train.evaluation.reading import evaluate_reading

    test = from_flags(ReadingTest, options)
    report = evaluate_reading(
        options.export, options.data, options.split, test, options.means, placement(options)
    )
    if options.json:
        print_json(report)
        return 0
    for name, rows in report["reading"].items():
        counts = report["corpora"][name]
        print(f"{name}: {counts['questions']:,} questions, {counts['documents']:,} documents")
        print(f"  {'over':<12}{'exact':>7}{'F1':>7}{'':>18}{'right':>8}{'does not say, of':>20}")
        print(f"  {'':<12}{'':>7}{'':>7}{'':>18}{'shown':>8}{'shown':>10}{'not shown':>10}")
        for row, found in rows.items():
            low, high = found["intervals"]["f1"]
            absent = found["said_absent"]
            shares = [found["right_shown"], absent["shown"], absent["not_shown"]]
            said = "".join(f"{'-' if x is None else format(x, '.3f'):>10}" for x in shares[1:])
            print(
                f"  {row:<12}{found['em']:>7.3f}{found['f1']:>7.3f}"
                f"{f'{low:.3f} to {high:.3f}':>18}{shares[0]:>8.3f}{said}"
            )
    print(f"{report['prompts']:,} prompts in {report['seconds']:.0f} s")
    return 0


def _made(report: dict[str, Any]) -> str:
    layers, reads = (", ".join(map(str, report[name])) for name in ("layers", "reads"))
    return (
        f"{report['target']}: routers in layers {layers} ({report['key_heads']} heads of "
        f"{report['head_dim']}), layers that read: {reads or 'none'}"
    )


def _recall(found: list[float]) -> str:
    return " / ".join(f"{x:.3f}" for x in found)
