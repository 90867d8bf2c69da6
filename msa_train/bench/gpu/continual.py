"""Part `backbone`: a real, small language model learns to find and to read, for the minutes left.

The steps of `make real`, on one rank: the router is fitted to Python's documentation and compared
with BM25 on questions it was not fitted on; then reading is learned until the time is up, when a
checkpoint is saved and exported, as after any SIGTERM. Questions about passages that training does
not see are answered before and after; asking before takes a quarter of the time that is left, at
most, and what it took is kept for asking after.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.errors import ConfigError, RankError

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "real.yaml"
_RESERVE_S = 30.0  # for the checkpoint and the export
_GIVE_UP_S = 2.0  # for the ranks to end, when nothing of them is wanted
_LONGER = 1.25  # asking again may take so many times as long: whoever learned says more
_STOPPED = 143  # SIGTERM, after a checkpoint
_HELD_OUT = "held_out"
_FIT = ("router fitted to Python's documentation", "s")
_RECALL = tuple(
    (f"recall@{k} on questions it was not fitted on, beside BM25", "share") for k in (1, 5, 16)
)
_READ = (
    ("reading learned: steps", "steps"),
    ("reading learned: active tokens", "tokens/s"),
    ("reading learned: loss at the end, beside the start", "nats"),
)
_OVER = {  # rows of `msa router answers`
    "oracle": "the right passages", "router_1": "the router's first",
    "router_3": "the router's first 3", "none": "no passage",
}  # fmt: skip
_MEASURES = {"em": "exact match", "f1": "F1"}


@dataclass(frozen=True)
class Amounts:
    """pairs: that the router is fitted on. questions: that are made to learn reading from, of which
    held_out_share are about passages that training does not see. asked: of these, at most. steps:
    of reading, at most."""

    pairs: int
    questions: int
    held_out_share: float
    asked: int
    steps: int


_FULL = Amounts(pairs=4000, questions=1000, held_out_share=0.1, asked=100, steps=400)
_TOY = Amounts(pairs=60, questions=80, held_out_share=0.2, asked=3, steps=2)


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    before, after = (
        [(_answers(name, measure, when), "share") for name in _OVER for measure in _MEASURES]
        for when in (False, True)
    )
    return [_FIT, *_RECALL, *before, *_READ, *after]


def _answers(name: str, measure: str, after: bool) -> str:
    when = "after reading was learned, beside before" if after else "before reading is learned"
    return f"answers over {_OVER[name]}, {when}: {_MEASURES[measure]}"


def rows(sizes: BatterySizes, backbone: Path | None, seconds: float) -> Iterator[Row]:
    """At toy size of a random model and a few documents where no backbone is given. Raises
    ConfigError where none is given otherwise."""
    if backbone is None and not sizes.toy:
        raise ConfigError(
            "no backbone was given: make one where there is a network (make backbone), and give "
            "its folder as --backbone"
        )
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="msa-gpu-") as folder:
        if sizes.toy:
            from msa_train.bench.gpu.toy_backbone import toy_backbone, toy_corpus

            place = backbone or toy_backbone(Path(folder) / "backbone")
            corpus = toy_corpus(place, Path(folder) / "corpus")
            bench = _Continual(place, Path(folder), end, str(corpus), _TOY, "fp32")
        else:
            bench = _Continual(backbone, Path(folder), end)
        yield measured(*_FIT, bench.fit)
        for (what, unit), k in zip(_RECALL, (1, 5, 16), strict=True):
            yield measured(what, unit, partial(bench.recall, k))
        yield from _asked(bench, after=False)
        for (what, unit), learned in zip(_READ, (bench.steps, bench.rate, bench.loss), strict=True):
            yield measured(what, unit, learned)
        yield from _asked(bench, after=True)


def _asked(bench: _Continual, after: bool) -> Iterator[Row]:
    for name in _OVER:
        for measure in _MEASURES:
            what = _answers(name, measure, after)
            yield measured(what, "share", partial(bench.answers, name, measure, after))


class _Once:
    """What a call gave, or raised: it is not made again."""

    def __init__(self, call: Callable[[], Any]):
        self._call, self._found, self._error = call, None, None

    def __call__(self) -> Any:
        if self._call is not None:
            call, self._call = self._call, None
            try:
                self._found = call()
            except Exception as error:  # whatever it is, every row of it says so
                self._error = error
        if self._error is not None:
            raise self._error
        return self._found


class _Continual:
    """Folders of one such run; each step is done once. corpus: documents and questions, the word
    pydocs or a dataset folder with questions.held_out. precision: of training; most CPUs multiply
    bfloat16 far more slowly than float32."""

    def __init__(
        self, backbone: Path, folder: Path, end: float, corpus: str = "pydocs",
        amounts: Amounts = _FULL, precision: str = "bf16",
    ):  # fmt: skip
        self._backbone, self._end, self._corpus, self._amounts = backbone, end, corpus, amounts
        self._precision = precision
        self._fitted, self._means, self._questions, self._run, self._reader = (
            folder / name for name in ("fitted", "means", "questions", "reading", "reader")
        )
        self._compared, self._made = _Once(self._compare), _Once(self._make_questions)
        self._learned = _Once(self._learn)
        self._before, self._after = _Once(self._ask_before), _Once(self._ask_after)
        self._ask_s = 0.0  # kept for asking after

    def fit(self) -> Measured:
        began = time.perf_counter()
        self._msa(
            "router", "fit", self._backbone, self._corpus, "--out", self._fitted, "--pairs",
            self._amounts.pairs, "--means", self._means,
        )  # fmt: skip
        return Measured(time.perf_counter() - began)

    def recall(self, k: int) -> Measured:
        ours, words = (self._compared()[name][f"recall@{k}"] for name in ("fitted", "BM25"))
        return Measured(ours, words)

    def answers(self, name: str, measure: str, after: bool) -> Measured:
        """Share of the held-out questions; afterwards beside what it was, if that is known."""
        found, questions = (self._after if after else self._before)()
        low, high = found[name]["intervals"][measure]
        note = f"{low:.3f} to {high:.3f} (95 %), {questions} questions"
        return Measured(found[name][measure], self._share_before(name, measure, after), note)

    def _share_before(self, name: str, measure: str, after: bool) -> float | None:
        try:
            return self._before()[0][name][measure] if after else None
        except Exception:  # its own rows say it
            return None

    def steps(self) -> Measured:
        return Measured(self._learned()[-1]["step"], self._amounts.steps)

    def rate(self) -> Measured:
        return Measured(median(each["active_tokens_per_s"] for each in self._learned()))

    def loss(self) -> Measured:
        losses = [each["loss/lm"] for each in self._learned()]
        return Measured(losses[-1], losses[0])

    # What they are made of.

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _msa(self, *arguments: object) -> str:
        return msa(arguments, self._left())

    def _compare(self) -> dict[str, dict[str, float]]:
        said = self._msa(
            "router", "compare", self._backbone, self._fitted, "--data", self._corpus, "--split",
            _HELD_OUT, "--means", self._means, "--json",
        )  # fmt: skip
        [found] = json.loads(said)["corpora"].values()
        return found["recall"]

    def _make_questions(self) -> None:
        self._msa(
            "data", "reading", self._fitted, self._corpus, "--out", self._questions, "--questions",
            self._amounts.questions, "--held-out-share", self._amounts.held_out_share, "--means",
            self._means,
        )  # fmt: skip

    def _ask_before(self) -> tuple[dict[str, Any], int]:
        self._made()
        began = time.monotonic()
        found = self._ask(self._fitted, self._left() / 4)
        self._ask_s = _LONGER * (time.monotonic() - began)
        return found

    def _ask_after(self) -> tuple[dict[str, Any], int]:
        self._before()  # what did not fit into its time then does not now
        self._learned()
        return self._ask(self._reader, self._left())

    def _ask(self, export: Path, seconds: float) -> tuple[dict[str, Any], int]:
        """Rows of `msa router answers`, and how many questions they are of."""
        given = (
            "router", "answers", export, "--data", self._questions, "--split", _HELD_OUT, "--rows",
            ",".join(_OVER), "--questions", self._amounts.asked, "--means", self._means, "--json",
        )  # fmt: skip
        report = json.loads(msa(given, seconds))
        [found], [corpus] = report["reading"].values(), report["corpora"].values()
        return found, corpus["questions"]

    def _learn(self) -> list[dict[str, float]]:
        """What the run logged; raises RankError where it logged nothing."""
        self._made()
        settings = self._settings()
        self._msa("data", "build", *settings)
        left = self._left() - _RESERVE_S - self._ask_s
        if left <= 0:
            raise RankError("no time was left to train: give more --minutes")
        train(["train", *settings, "--ranks", "1"], left)
        file = self._run / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        logged = [each for each in map(json.loads, lines) if "loss/lm" in each]
        if not logged:
            raise RankError("no step was logged before the time was up: give more --minutes")
        self._msa("export", self._run, self._reader)
        return logged

    def _settings(self) -> list[str]:
        """configs/real.yaml with this run's model and folders, and as many steps as there is time
        for."""
        import yaml

        from msa_train.config import to_plain
        from msa_train.interop.export import check_export

        given, (model, _) = yaml.safe_load(CONFIG.read_text()), check_export(self._fitted)
        datasets, stages = given["data"]["datasets"], given["stages"]
        for each in datasets.values():
            each["path"] = str(self._questions)
        for each in stages:
            each["steps"] = self._amounts.steps
        return [
            "--config", str(CONFIG), "--output", str(self._run),
            "--model", json.dumps(to_plain(model)), "--data.contexts.answers", model.answers,
            "--training.precision", self._precision,
            "--training.start_from", str(self._fitted), "--data.tokenizer.path", str(self._fitted),
            "--data.datasets", json.dumps(datasets), "--stages", json.dumps(stages),
        ]  # fmt: skip


def msa(arguments: Sequence[object], seconds: float) -> str:
    """Standard output of `msa ARGUMENTS` in a process of its own, which ends with its time. Raises
    RankError where it fails, with the last line that it said, and where it takes longer."""
    name = " ".join(map(str, arguments[:2]))
    try:
        done = subprocess.run(
            command(arguments), capture_output=True, text=True, timeout=max(seconds, 0.0)
        )
    except subprocess.TimeoutExpired:
        raise RankError(
            f"msa {name} was not done in {seconds:.0f} s: give more --minutes"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RankError(f"msa {name} failed: {said}")
    return done.stdout


def train(arguments: Sequence[object], seconds: float) -> None:
    """A run that is told to save and stop when the time is up. Raises RankError where it fails."""
    process = subprocess.Popen(command(arguments), stdout=sys.stderr)
    try:
        code = _ended(process, seconds)
    finally:
        _give_up(process)
    if code not in (0, _STOPPED, -signal.SIGTERM):
        raise RankError(f"msa train ended with code {code} (see standard error)")


def _ended(process: subprocess.Popen, seconds: float) -> int:
    wait: Callable[[float], int] = process.wait
    try:
        return wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return wait(_RESERVE_S)
    except subprocess.TimeoutExpired:
        raise RankError(f"msa train did not stop within {_RESERVE_S:.0f} s of SIGTERM") from None


def _give_up(process: subprocess.Popen) -> None:
    """A second Ctrl-C makes it kill its ranks, which would write on in a folder that is gone."""
    for end in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GIVE_UP_S)


def command(arguments: Sequence[object]) -> list[str]:
    """With this interpreter: a bare source tree has no `msa`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return [sys.executable, "-m", "msa_train.cli", *map(str, arguments)]
