"""A run in Weights & Biases: numbers, tables, alerts, and folders as artifacts.

Every call returns at once and raises nothing: a thread makes it (Background). Without a run (off,
not installed, could not start) nothing happens.
"""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import INDEX_FILE, MANIFEST_FILE, TOKENIZER_FOLDER, ShardManifest
from msa_train.config import WandbConfig

PREEMPTED = 143  # 128 + SIGTERM
TITLE = 63  # characters that W&B allows


class Tracker:
    """One W&B run. run: of wandb.init, or None.

    known_step: the last step that W&B has of the run from before it was resumed (None: it was not).
    """

    def __init__(self, run: Any, settings: WandbConfig, known_step: int | None = None):
        self._run, self._settings, self._known_step = run, settings, known_step
        self._background = None if run is None else Background()

    @property
    def run_id(self) -> str | None:
        return getattr(self._run, "id", None)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._do("numbers", lambda run: run.log(numbers, step=step))

    def catch_up(self, rows: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Send what a killed rank had not handed over. rows: (step, numbers) of what was logged."""
        if self._known_step is None:
            return
        lost = [(step, numbers) for step, numbers in rows if step > self._known_step]

        def send(run: Any) -> None:
            for step, numbers in lost:
                run.log(numbers, step=step)

        self._do("numbers", send)

    def table(
        self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """rows: plain values, one for each column; of one type in a column, or None."""

        def send(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            run.log({name: table}, step=step)

        self._do("tables", send)

    def alert(self, title: str, text: str) -> None:
        """By mail or Slack, as the user has set up at W&B."""
        self._do("alerts", lambda run: run.alert(title[:TITLE], text, level="WARN"))

    def use_shards(self, folder: Path) -> None:
        self._artifact(lambda run: _use(run, shards_artifact(folder), []))

    def use_checkpoint(self, folder: Path, step: int, run_id: str) -> None:
        """The checkpoint of run `run_id` as an input of this run."""

        def send(run: Any) -> None:
            _use(run, checkpoint_artifact(folder, run_id, self._copies), [_alias(step)])

        self._artifact(send)

    def log_checkpoint(self, folder: Path, step: int, aliases: Sequence[str] = ()) -> None:
        def send(run: Any) -> None:
            try:
                artifact = checkpoint_artifact(folder, run.id, self._copies)
            except FileNotFoundError:  # training.keep_checkpoints has removed it meanwhile
                _say(f"W&B: {folder} is gone, not recorded")
                return
            run.log_artifact(artifact, aliases=[_alias(step), *aliases])

        self._artifact(send)

    def log_export(self, folder: Path, step: int, run_id: str) -> None:
        """An export, under the name of the run that trained it."""

        def send(run: Any) -> None:
            artifact = export_artifact(folder, run_id, self._copies)
            run.log_artifact(artifact, aliases=[_alias(step)])

        self._artifact(send)

    def finish(self, exit_code: int = 0) -> None:
        """Wait for what is still to be written or sent, at most finish_timeout_s."""
        if self._background is None:
            return
        if exit_code == PREEMPTED:  # a sweep gives such a run out again
            self._do("preemption", lambda run: run.mark_preempting())
        self._do("end", lambda run: run.finish(exit_code=exit_code))
        self._background.close(self._settings.finish_timeout_s)
        self._background = None

    @property
    def _copies(self) -> bool:
        return self._settings.artifacts == "files"

    def _artifact(self, call: Any) -> None:
        if self._settings.artifacts != "none":
            self._do("artifacts", call)

    def _do(self, kind: str, call: Any) -> None:
        if self._background is not None:
            self._background.do(kind, lambda: call(self._run))


class Background:
    """Makes calls one after the other, in the order given; handing one over never waits.

    The error of a call that raises is printed once, and later calls of its kind are not made. When
    `capacity` calls are waiting, further ones are dropped; that is printed once too.
    """

    def __init__(self, capacity: int = 1000):
        self._calls: queue.Queue[tuple[str, Callable[[], Any]] | None] = queue.Queue(capacity)
        self._given_up: set[str] = set()
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def do(self, kind: str, call: Callable[[], Any]) -> None:
        try:
            self._calls.put_nowait((kind, call))
        except queue.Full:
            if not self._dropped:
                _say("W&B does not keep up: what comes now is dropped; training goes on")
            self._dropped = True

    def close(self, timeout_s: float) -> None:
        """Wait for the calls that were handed over, but no longer than timeout_s."""
        end = time.monotonic() + timeout_s
        try:
            self._calls.put(None, timeout=timeout_s)
        except queue.Full:
            pass
        else:
            self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            _say(f"W&B did not finish within {timeout_s:.0f} s: send the rest with wandb sync")

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            kind, call = item
            if kind in self._given_up:
                continue
            try:
                call()
            except Exception as error:  # tracking must never end a run
                self._given_up.add(kind)
                _say(f"W&B ({kind}): {error}; training goes on without it")


# Folders as artifacts. The same folder makes the same artifact in every process: that is how W&B
# sees that an export was made from the checkpoint which training had logged.


def shards_artifact(folder: Path) -> Any:
    """Manifest, index (with a checksum of every sample) and tokenizer; no shard is read."""
    folder = folder.resolve()
    manifest = ShardManifest.load(folder)
    facts = {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(manifest.shards),
        "tokenizer": manifest.tokenizer,
        "folder": folder.as_uri(),
    }
    files = [folder / MANIFEST_FILE, folder / INDEX_FILE, *_files(folder / TOKENIZER_FOLDER)]
    return _artifact(f"shards-{folder.parent.name}", "dataset", folder, files, False, facts)


def checkpoint_artifact(folder: Path, run_id: str, copies: bool) -> Any:
    """A whole checkpoint folder; its state.json says the step."""
    facts = {"step": json.loads((folder / "state.json").read_text())["step"]}
    return _artifact(f"checkpoint-{run_id}", "checkpoint", folder, _files(folder), copies, facts)


def export_artifact(folder: Path, run_id: str, copies: bool) -> Any:
    facts = json.loads((folder / "fingerprint.json").read_text())
    return _artifact(f"export-{run_id}", "model", folder, _files(folder), copies, facts)


def _artifact(
    name: str, kind: str, folder: Path, files: Iterable[Path], copies: bool, facts: dict[str, Any]
) -> Any:
    """References carry the digest of the file's content, as copies do."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind, metadata=facts)
    for path in files:
        name_there = str(path.relative_to(folder))
        if copies:
            artifact.add_file(str(path), name=name_there)
        else:
            artifact.add_reference(path.resolve().as_uri(), name=name_there)
    return artifact


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _alias(step: int) -> str:
    return f"step-{step}"


def _use(run: Any, artifact: Any, aliases: list[str]) -> None:
    """An artifact as the run's input: what run.use_artifact does with one that is not logged yet.

    But use_artifact refuses to work offline and waits for the server; this call does neither.
    """
    run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
