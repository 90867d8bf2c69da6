"""What a run reports: a JSON-lines file, a progress line, alerts, and the same to W&B."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline import files
from msa_train.config import Config
from msa_train.training.tracking.spikes import SpikeWatch
from msa_train.training.tracking.start import start

Numbers = dict[str, float]
ALERT_EVERY_S = 600  # of one title


class Reporter:
    """Rank 0's voice. `log` takes the numbers of a step; `line` says the main ones to a person."""

    def __init__(
        self, config: Config, wandb_id: str | None, first_step: int, steps: int, rank: int
    ):
        self._speaks = rank == 0
        self._total, self._first, self._began = steps, first_step, time.monotonic()
        self._alerted: dict[str, float] = {}
        spreads = config.training.wandb.alert_spreads
        self._watches = {
            f"loss/{name}": SpikeWatch(spreads) for name in ("lm", "router") if spreads
        }
        if self._speaks:
            path = config.path / "metrics.jsonl"
            _forget_after(path, first_step)
            self._file = path.open("a", buffering=1)
            self._tracker = start(config, wandb_id)
            if (shards := config.manifest_folder).exists():
                self._tracker.use_shards(shards)

    @property
    def wandb_id(self) -> str | None:
        return self._tracker.run_id if self._speaks else None

    def log(self, step: int, numbers: Numbers) -> None:
        if not self._speaks:
            return
        trained = "loss/lm" in numbers  # else they are of held-out data
        if trained:
            numbers = numbers | {"router/recall@1": _recall(numbers)}
        valid = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **valid}) + "\n")
        self._tracker.log(step, numbers)
        if not trained:
            self._held_out_line(step, numbers)
            return
        self._line(step, numbers)
        for name, watch in self._watches.items():
            if watch.sees(numbers[name]):
                self.alert(f"{name} jumped", f"to {numbers[name]:.4g} at step {step}")

    def table(
        self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Rows of plain values for W&B, at a step that is not before the last logged one."""
        if self._speaks:
            self._tracker.table(name, step, columns, rows)

    def alert(self, title: str, text: str) -> None:
        """Say something that a person should look at; the same title not again for a while."""
        now = time.monotonic()
        if not self._speaks or now - self._alerted.get(title, -math.inf) < ALERT_EVERY_S:
            return
        self._alerted[title] = now
        print(f"{title}: {text}", file=sys.stderr, flush=True)
        self._tracker.alert(title, text)

    def checkpoint(self, folder: Path, step: int, aliases: Sequence[str] = ()) -> None:
        """A checkpoint is complete."""
        if self._speaks:
            self._tracker.log_checkpoint(folder, step, aliases)

    def finish(self, exit_code: int = 0) -> None:
        if self._speaks:
            self._file.close()
            self._tracker.finish(exit_code)

    def _line(self, step: int, numbers: Numbers) -> None:
        done = max(1, step - self._first)
        left = (time.monotonic() - self._began) / done * (self._total - step)
        print(
            f"step {step:>5}/{self._total}  lm {numbers['loss/lm']:.3f}  "
            f"router {numbers['loss/router']:.3f}  recall@1 {numbers['router/recall@1']:.3f}  "
            f"lr {numbers['lr']:.1e}  {numbers['step_ms']:.0f} ms  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )

    def _held_out_line(self, step: int, numbers: Numbers) -> None:
        shown = (f"{key.removeprefix('held_out/')} {value:.3f}" for key, value in numbers.items())
        print(f"step {step:>5} held out: {', '.join(shown)}", file=sys.stderr, flush=True)


def _recall(numbers: Numbers) -> float:
    """recall@1, mean over the router layers: one number for charts, sweeps and people."""
    recalls = [value for key, value in numbers.items() if key.endswith("recall@1")]
    return sum(recalls) / max(1, len(recalls))


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a run which was killed had done after its last checkpoint."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # the line that was being written
            break
    files.replace_file(path, "".join(kept))
