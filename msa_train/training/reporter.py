"""What rank 0 reports of a run: a JSON-lines file, a progress line, alerts, and the same to W&B."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline import files
from msa_train.config import Config
from msa_train.training.metrics import Numbers
from msa_train.training.saying import say
from msa_train.training.spikes import spike_limit
from msa_train.training.tracking.start import start

ALERT_EVERY_S = 600  # alerts with the same title


class Reporter:
    """Every rank has one, and rank 0's reports. `log` takes the numbers of a step."""

    def __init__(
        self, config: Config, wandb_id: str | None, first_step: int, steps: int, rank: int
    ):
        self._reports = rank == 0
        self._total, self._first, self._began = steps, first_step, time.monotonic()
        self._alerted: dict[str, float] = {}
        spreads = config.training.wandb.alert_spreads
        self._watches = {f"loss/{name}": JumpWatch(spreads) for name in ("lm", "router") if spreads}
        if self._reports:
            path = config.path / "metrics.jsonl"
            rows = _drop_after(path, first_step)
            self._file = path.open("a", buffering=1)
            self._tracker = start(config, wandb_id)
            self._tracker.catch_up(rows)
            if (shards := config.manifest_folder).exists():
                self._tracker.use_shards(shards)

    @property
    def wandb_id(self) -> str | None:
        return self._tracker.run_id if self._reports else None

    def log(self, step: int, numbers: Numbers) -> None:
        if not self._reports:
            return
        trained = "loss/lm" in numbers  # otherwise they are of held-out samples
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
            if watch.jumps(numbers[name]):
                self.alert(f"{name} jumped", f"to {numbers[name]:.4g} at step {step}")

    def table(
        self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Rows of plain values for W&B, at a step that is not before the last logged one."""
        if self._reports:
            self._tracker.table(name, step, columns, rows)

    def alert(self, title: str, text: str, say_each: bool = False) -> None:
        """Report what a person should look at; one title at most every ALERT_EVERY_S seconds.

        say_each: every one is a line here, however many there are.
        """
        now = time.monotonic()
        late = now - self._alerted.get(title, -math.inf) < ALERT_EVERY_S
        if not self._reports or (late and not say_each):
            return
        say(f"{title}: {text}")
        if not late:
            self._alerted[title] = now
            self._tracker.alert(title, text)

    def checkpoint(self, folder: Path, step: int, aliases: Sequence[str] = ()) -> None:
        """A checkpoint is complete."""
        if self._reports:
            self._tracker.log_checkpoint(folder, step, aliases)

    def finish(self, exit_code: int = 0) -> None:
        if self._reports:
            self._file.close()
            self._tracker.finish(exit_code)

    def _line(self, step: int, numbers: Numbers) -> None:
        done = max(1, step - self._first)
        left = (time.monotonic() - self._began) / done * (self._total - step)
        say(
            f"step {step:>5}/{self._total}  lm {numbers['loss/lm']:.3f}  "
            f"router {numbers['loss/router']:.3f}  recall@1 {numbers['router/recall@1']:.3f}  "
            f"lr {numbers['lr']:.1e}  {numbers['step_ms']:.0f} ms  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )

    def _held_out_line(self, step: int, numbers: Numbers) -> None:
        shown = (f"{key.removeprefix('held_out/')} {value:.3f}" for key, value in numbers.items())
        say(f"step {step:>5} held out: {', '.join(shown)}")


class JumpWatch:
    """Watches the logged values of one loss.

    A jump is a value that is not finite, or above the median of the last `window` values by more
    than `spreads` times their median distance from it; the first `least` values never are.
    """

    def __init__(self, spreads: float, window: int = 50, least: int = 10):
        self._spreads, self._least = spreads, least
        self._values: deque[float] = deque(maxlen=window)
        self._high = False

    def jumps(self, loss: float) -> bool:
        """Whether a jump begins with this value; False while it lasts."""
        high, was_high = loss > self._limit() or not math.isfinite(loss), self._high
        self._high = high
        if math.isfinite(loss):  # a new plateau becomes the median after half a window
            self._values.append(loss)
        return high and not was_high

    def _limit(self) -> float:
        if len(self._values) < self._least:
            return math.inf
        return spike_limit(self._values, self._spreads)


def _recall(numbers: Numbers) -> float:
    """recall@1, mean over the router layers: one number for charts, sweeps and people."""
    recalls = [value for key, value in numbers.items() if key.endswith("recall@1")]
    return sum(recalls) / max(1, len(recalls))


def _drop_after(path: Path, step: int) -> list[tuple[int, Numbers]]:
    """Drop the lines of later steps: a killed run had done them after its last checkpoint.

    Returns the others, as (step, numbers).
    """
    if not path.exists():
        return []
    kept, rows = [], []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            at = row.pop("step")
            if at <= step:
                rows.append((at, {k: math.nan if v is None else v for k, v in row.items()}))
                kept.append(line)
        except (ValueError, KeyError, TypeError, AttributeError):  # the line that was being written
            break
    files.replace_file(path, b"".join(kept))
    return rows
