"""Part `backbone`: a real, small language model learns to find and to read, for the minutes left.

The steps of `make real`, on one rank: the router is fitted to Python's documentation and compared
with BM25 on questions it was not fitted on; then reading is learned until the time is up, when a
checkpoint is saved and exported, as after any SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from msa_train.bench.gpu.results import Measured, Row, measured
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.errors import ConfigError, RankError

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "real.yaml"
_STEPS, _PAIRS, _QUESTIONS = 400, 4000, 1000
_RESERVE_S = 30.0  # for the checkpoint and the export
_STOPPED = 143  # SIGTERM, after a checkpoint
_FIT = ("router fitted to Python's documentation", "s")
_RECALL = tuple(
    (f"recall@{k} on questions it was not fitted on, beside BM25", "share") for k in (1, 5, 16)
)
_READ = (
    ("reading learned: steps", "steps"),
    ("reading learned: active tokens", "tokens/s"),
    ("reading learned: loss at the end, beside the start", "nats"),
)


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    return [_FIT, *_RECALL, *_READ]


def rows(backbone: Path | None, seconds: float) -> Iterator[Row]:
    """Raises ConfigError where no backbone is given."""
    if backbone is None:
        raise ConfigError(
            "no backbone was given: make one where there is a network (make backbone), and give "
            "its folder as --backbone"
        )
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="msa-gpu-") as folder:
        bench = _Continual(backbone, Path(folder), end)
        yield measured(*_FIT, bench.fit)
        for (what, unit), k in zip(_RECALL, (1, 5, 16), strict=True):
            yield measured(what, unit, lambda k=k: bench.recall(k))
        for (what, unit), learned in zip(_READ, (bench.steps, bench.rate, bench.loss), strict=True):
            yield measured(what, unit, learned)


class _Continual:
    """Folders of one such run; each step is done once."""

    def __init__(self, backbone: Path, folder: Path, end: float):
        self._backbone, self._end = backbone, end
        self._fitted, self._means, self._questions, self._run, self._reader = (
            folder / name for name in ("fitted", "means", "questions", "reading", "reader")
        )
        self._found: dict[str, Any] | None = None
        self._log: list[dict[str, float]] | None = None

    def fit(self) -> Measured:
        began = time.perf_counter()
        msa(
            "router", "fit", self._backbone, "pydocs", "--out", self._fitted, "--pairs", _PAIRS,
            "--means", self._means,
        )  # fmt: skip
        return Measured(time.perf_counter() - began)

    def recall(self, k: int) -> Measured:
        if self._found is None:
            said = msa(
                "router", "compare", self._backbone, self._fitted, "--data", "pydocs", "--split",
                "held_out", "--means", self._means, "--json",
            )  # fmt: skip
            self._found = json.loads(said)["corpora"]["pydocs"]["recall"]
        ours, words = (self._found[name][f"recall@{k}"] for name in ("fitted", "BM25"))
        return Measured(ours, words)

    def steps(self) -> Measured:
        return Measured(self._learned()[-1]["step"], _STEPS)

    def rate(self) -> Measured:
        return Measured(median(each["active_tokens_per_s"] for each in self._learned()))

    def loss(self) -> Measured:
        losses = [each["loss/lm"] for each in self._learned()]
        return Measured(losses[-1], losses[0])

    def _learned(self) -> list[dict[str, float]]:
        """What the run logged; raises RankError where it logged nothing."""
        if self._log is None:
            self._learn()
            file = self._run / "metrics.jsonl"
            lines = file.read_text().splitlines() if file.is_file() else []
            self._log = [each for each in map(json.loads, lines) if "loss/lm" in each]
        if not self._log:
            raise RankError("no step was logged before the time was up: give more --minutes")
        return self._log

    def _learn(self) -> None:
        msa(
            "data", "reading", self._fitted, "pydocs", "--out", self._questions, "--questions",
            _QUESTIONS, "--means", self._means,
        )  # fmt: skip
        settings = self._settings()
        msa("data", "build", *settings)
        left = self._end - time.monotonic() - _RESERVE_S
        if left <= 0:
            raise RankError("no time was left to train: give more --minutes")
        train(["train", *settings, "--ranks", "1"], left)
        msa("export", self._run, self._reader)

    def _settings(self) -> list[str]:
        """configs/real.yaml with this run's folders, and as many steps as there is time for."""
        import yaml

        given = yaml.safe_load(CONFIG.read_text())
        datasets, stages = given["data"]["datasets"], given["stages"]
        for each in datasets.values():
            each["path"] = str(self._questions)
        for each in stages:
            each["steps"] = _STEPS
        return [
            "--config", str(CONFIG), "--output", str(self._run),
            "--training.start_from", str(self._fitted), "--data.tokenizer.path", str(self._fitted),
            "--data.datasets", json.dumps(datasets), "--stages", json.dumps(stages),
        ]  # fmt: skip


def msa(*arguments: object) -> str:
    """Standard output of `msa ARGUMENTS` in a process of its own. Raises RankError where it fails,
    with the last line that it said."""
    done = subprocess.run(command(arguments), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RankError(f"msa {' '.join(map(str, arguments[:2]))} failed: {said}")
    return done.stdout


def train(arguments: Sequence[object], seconds: float) -> None:
    """A run that is told to save and stop when the time is up. Raises RankError where it fails."""
    process = subprocess.Popen(command(arguments), stdout=sys.stderr)
    try:
        code = _ended(process, seconds)
    finally:
        process.kill()
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


def command(arguments: Sequence[object]) -> list[str]:
    """With this interpreter: a bare source tree has no `msa`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return [sys.executable, "-m", "msa_train.cli", *map(str, arguments)]
