"""Rank 0's voice in Weights & Biases.

Every call returns at once and raises nothing: a thread makes it (see Background). Without a run
(off, not installed, could not start) nothing happens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msa_train.config import WandbConfig
from msa_train.training.tracking.artifacts import (
    checkpoint_artifact,
    export_artifact,
    shards_artifact,
)
from msa_train.training.tracking.background import Background

PREEMPTED = 143  # 128 + SIGTERM
TITLE = 63  # characters that W&B allows


class Tracker:
    """One W&B run. run: of wandb.init, or None."""

    def __init__(self, run: Any, settings: WandbConfig):
        self._run, self._settings = run, settings
        self._background = None if run is None else Background()

    @property
    def run_id(self) -> str | None:
        return getattr(self._run, "id", None)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._do("numbers", lambda run: run.log(numbers, step=step))

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
        """Mail or Slack, as the user has set it up at W&B."""
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
                print(f"W&B: {folder} is gone, not recorded", file=sys.stderr, flush=True)
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
        """Wait for what is still to be written or sent, within finish_timeout_s."""
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


def _alias(step: int) -> str:
    return f"step-{step}"


def _use(run: Any, artifact: Any, aliases: list[str]) -> None:
    """An artifact as the run's input: what run.use_artifact does with one that is not logged yet.

    That one refuses to work offline and waits for the server; the call beneath it does neither.
    """
    run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)
