"""`msa real`: a pretrained model gets a memory of Python's documentation, and answers from it.

No labels are used: the router is fitted on titles and sentences of the documentation itself, and on
questions made of it, and judged by questions about documents that it was not fitted on. Reading is
learned from questions made of the texts, too.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa_train.commands.placement import add_placement, placement
from msa_train.commands.steps import Main, MemoryWatch, begin_step, msa_json, run_msa
from msa_train.errors import ConfigError

if TYPE_CHECKING:
    from msa_train.interop.export import Placement

QUESTIONS = (
    "How do I make a date from an ISO string?",
    "What does textwrap.shorten do?",
    "How do I start a thread?",
)
_CORPUS, _TEST = "pydocs", "held_out"
_PAIRS = "4000"  # of 9,000: running all of them through the backbone takes minutes more
_FITTED = "fitted"  # folder of the export, and its name in the comparison
_ASKED = 1000  # questions that are made to learn reading from
_RETRIEVAL, _ANSWERS, _PICTURE = "retrieval.json", "answers.json", "real.png"


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "real", help="a pretrained model with a memory of Python's documentation, in one go"
    )
    parser.add_argument(
        "--backbone", type=Path, required=True, help="its folder, from `make backbone`"
    )
    parser.add_argument(
        "--dense", type=Path, required=True, metavar="DIR",
        help="a sentence encoder to compare with, from `make dense`",
    )  # fmt: skip
    parser.add_argument(
        "--reading", type=Path, default=Path("configs/real.yaml"), metavar="FILE",
        help="config of the stage that learns reading (default configs/real.yaml)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="default runs/real")
    parser.add_argument(
        "--means", type=Path, required=True, metavar="DIR",
        help="where `msa router start` kept chunk means, and the others find them",
    )  # fmt: skip
    add_placement(parser)
    parser.set_defaults(run=_real)


def _real(options: argparse.Namespace) -> int:
    if not options.reading.is_file():
        raise ConfigError(f"--reading is {options.reading}: there is no such file")
    if not options.dense.is_dir():
        raise ConfigError(f"--dense is {options.dense}: there is no such folder (make dense)")
    out, main = options.out, options.main
    fitted, bank, questions, reader = (
        out / name for name in (_FITTED, "bank", "questions", "reader")
    )
    found, answers = out / _RETRIEVAL, out / _ANSWERS
    placed = placement(options)
    where = ["--device", placed.device, "--compute", placed.compute]
    means = ["--means", str(options.means), *where]
    fit = [
        "router", "fit", str(options.backbone), _CORPUS, "--out", str(fitted), "--pairs", _PAIRS,
        *means,
    ]  # fmt: skip
    write = [
        "data", "reading", str(fitted), _CORPUS, "--out", str(questions), "--questions",
        str(_ASKED), *means,
    ]  # fmt: skip
    build = ["memory", "build", str(bank), str(reader), _CORPUS, *where]
    compare = [
        "router", "compare", str(options.backbone), str(fitted), "--data", _CORPUS,
        "--split", _TEST, "--dense", str(options.dense), *means,
    ]  # fmt: skip
    ask = ["ask", str(reader), str(bank), *QUESTIONS, "--retrieval", "router", "--hybrid", "bm25",
           *where]  # fmt: skip
    read = [options.reading.read_text(), placed.compute]
    run, keep = partial(partial, run_msa, main), partial(partial, _keep_report, main)
    todo = (
        ("fit", "router: learned from the documentation itself, without labels", fitted, fit,
         run(fit)),
        ("questions", "reading: questions out of the texts, and what the router brings for them",
         questions, write, run(write)),
        ("reading", "reading: learned by DeepSpeed on two ranks; the router stays", reader,
         read, partial(_learn_reading, main, options, placed, fitted, questions)),
        ("memory", "memory: all of Python's documentation, encoded once", bank, build, run(build)),
        ("retrieval", "who finds the right documents", found, compare, keep(compare, found)),
        ("answers", "questions, answered over router and BM25", answers, ask,
         keep(ask, answers)),
    )  # fmt: skip
    steps = _Steps(out)
    for number, (name, what, *step) in enumerate(todo, 1):
        begin_step(f"{number}/{len(todo)}", what)
        steps.do(name, *step)
    report = _report(out, options.backbone.name, steps)
    _write(report, out / "report.json")
    _draw(report, out / _PICTURE)
    _show(report, out)
    return 0


def _learn_reading(
    main: Main, options: argparse.Namespace, placed: Placement, start: Path, questions: Path
) -> None:
    """Shards, training and export, under the config with this run's folders and precision."""
    from msa_train.config import load_config_file, to_plain
    from msa_train.parallel.slots import ranks_here

    config, out = options.reading, options.out
    datasets = to_plain(load_config_file(config).data)["datasets"]
    if len(datasets) != 1:
        raise ConfigError(
            f"{config} has {len(datasets)} data.datasets: give one, whose path is then this run's"
        )
    for dataset in datasets.values():
        dataset["path"] = str(questions)
    run = [
        "--config", str(config), "--output", str(out / "reading"),
        "--training.start_from", str(start), "--data.tokenizer.path", str(start),
        "--data.datasets", json.dumps(datasets), "--training.precision",
        "bf16" if placed.compute == "bfloat16" else "fp32",
    ]  # fmt: skip
    run_msa(main, ["data", "build", *run])
    run_msa(main, ["train", *run, "--ranks", str(ranks_here(2)), "--resume"])
    run_msa(main, ["export", str(out / "reading"), str(out / "reader")])


class _Steps:
    """Steps that a later run finds done, and what all of them took.

    steps.json says of each what it was made of: its command, and the step before it.
    """

    def __init__(self, folder: Path):
        self._file = folder / "steps.json"
        kept = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self.seconds: dict[str, float] = kept.get("seconds", {})
        self.peak_rss_gb: float = kept.get("peak_rss_gb", 0.0)
        self._made: dict[str, dict[str, Any]] = kept.get("made", {})
        self._before = ""

    def do(self, name: str, target: Path, command: Any, run: Callable[[], None]) -> None:
        """run() makes target, whole or not at all. Raises ConfigError for one that was made by
        another command, or after a step before it that has been done again since."""
        made_of = {"command": command, "after": self._before}
        if target.exists():
            self._check(name, target, made_of)
            print(f"{target} is there already")
        else:
            self._watched(name, run)
            self._made[name] = made_of | {"id": uuid.uuid4().hex}
            self._keep()
        self._before = self._made[name]["id"]

    def _check(self, name: str, target: Path, made_of: dict[str, Any]) -> None:
        known = self._made.get(name)
        if known is None:
            raise ConfigError(
                f"{target} is there, and {self._file} does not say how it was made (an earlier "
                "version, or a step that was interrupted): remove it, or give another --out"
            )
        changed = [key for key, value in made_of.items() if known.get(key) != value]
        if changed:
            why = (
                "from what is not there any more" if changed == ["after"] else "by another command"
            )
            raise ConfigError(
                f"{target} was made {why}: remove it, to have it made again, or give another --out"
            )

    def _watched(self, name: str, run: Callable[[], None]) -> None:
        if name in self._made:  # and was removed: not an attempt that ended half-way
            del self._made[name], self.seconds[name]
        watch, began = MemoryWatch(), time.monotonic()
        try:
            run()
        finally:
            self.peak_rss_gb = round(max(self.peak_rss_gb, watch.stop()), 2)
            taken = self.seconds.get(name, 0.0) + time.monotonic() - began
            self.seconds[name] = round(taken, 1)
            self._keep()

    def _keep(self) -> None:
        kept = {"seconds": self.seconds, "peak_rss_gb": self.peak_rss_gb, "made": self._made}
        _write(kept, self._file)


def _keep_report(main: Main, command: list[str], target: Path) -> None:
    _write(msa_json(main, command), target)


def _write(report: Any, path: Path) -> None:
    from msa_train.evaluation.report import write_report

    write_report(report, path)


def _report(out: Path, backbone: str, steps: _Steps) -> dict[str, Any]:
    from msa_train.evaluation.report import machine
    from msa_train.router.settings import RECALL_AT

    found = json.loads((out / _RETRIEVAL).read_text())["corpora"][_CORPUS]
    named = {
        "zero_shot": backbone, "fitted": _FITTED, "bm25": "BM25", "dense": "dense",
        "hybrid": f"{_FITTED} + BM25", "random": "random router",
    }  # fmt: skip
    rows = {name: found["recall"][method] for name, method in named.items()}
    return {
        "seconds": round(sum(steps.seconds.values()), 1),
        "peak_rss_gb": steps.peak_rss_gb,
        "steps": steps.seconds,
        "documents": found["documents"],
        "questions": found["questions"],
        _CORPUS: {name: [row[f"recall@{k}"] for k in RECALL_AT] for name, row in rows.items()},
        "intervals": {
            name: [row[f"interval@{k}"] for k in RECALL_AT] for name, row in rows.items()
        },
        "answers": _answers(out),
        "machine": machine(),
    }


def _answers(out: Path) -> list[dict[str, Any]]:
    """Question, answer and the names of the documents that were read for it."""
    from msa_train.memory.bank.snapshot import BankSnapshot

    bank = BankSnapshot.open(out / "bank")
    return [
        {
            "question": each["question"],
            "answer": each["answer"],
            "sources": [bank[number].id for number in each["evidence"]],
        }
        for each in json.loads((out / _ANSWERS).read_text())
    ]


_ROWS = {  # of the report, as they are shown
    "zero_shot": ("router, nothing trained", "#a9c6e6"),
    "fitted": ("router, fitted without labels", "#1f5fa8"),
    "bm25": ("BM25", "#8a8a8a"),
    "dense": ("MiniLM, a dense retriever", "#b7950b"),
    "hybrid": ("fitted router and BM25", "#2f855a"),
    "random": ("random router (control)", "#d4d4d4"),
}


def _draw(report: dict[str, Any], path: Path) -> None:
    from msa_train.evaluation.plots import optional, plot_methods

    methods = {
        label: (report[_CORPUS][name], report["intervals"][name], colour)
        for name, (label, colour) in _ROWS.items()
    }
    answers = [
        (each["question"], each["answer"], ", ".join(each["sources"])) for each in report["answers"]
    ]
    title = (
        f"Python's documentation: {report['questions']:,} questions, "
        f"{report['documents']:,} documents"
    )
    with optional(path):
        plot_methods(title, methods, answers, path)


def _show(report: dict[str, Any], out: Path) -> None:
    print(
        f"\nPython's documentation: {report['documents']:,} documents, {report['questions']:,} "
        "questions about documents that the router was not fitted on\n"
        f"  {'recall@1 / 5 / 16':>49}"
    )
    for name, recalls in report[_CORPUS].items():
        low, high = report["intervals"][name][0]
        shown = " / ".join(f"{x:.3f}" for x in recalls)
        print(f"  {_ROWS[name][0]:<32}{shown}   @1 {low:.3f} to {high:.3f}")
    for each in report["answers"]:
        print(f"\n? {each['question']}\n= {each['answer']}\n  read: {', '.join(each['sources'])}")
    print(
        f"\nreal: {report['seconds'] / 60:.1f} minutes, at most {report['peak_rss_gb']:.1f} GB of "
        f"memory. The report is {out / 'report.json'}, the picture {out / _PICTURE}"
    )
