"""What a run reports: Weights & Biases, a JSON-lines file with the same numbers, a progress line.

Tracking never stalls or fails training: whatever W&B raises is said once, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msa_train.config import Config, WandbConfig, to_plain

Numbers = dict[str, float]


class Reporter:
    """Rank 0's voice. `log` takes the numbers of a step; `line` says the main ones to a person."""

    def __init__(
        self, config: Config, wandb_id: str | None, first_step: int, steps: int, rank: int
    ):
        self._speaks = rank == 0
        self._total, self._first, self._began = steps, first_step, time.monotonic()
        self._run = None
        if self._speaks:
            path = config.path / "metrics.jsonl"
            _forget_after(path, first_step)
            self._file = path.open("a", buffering=1)
            self._run = _start_wandb(config, wandb_id)

    @property
    def wandb_id(self) -> str | None:
        return getattr(self._run, "id", None)

    def log(self, step: int, numbers: Numbers) -> None:
        if not self._speaks:
            return
        valid = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **valid}) + "\n")
        self._guarded(lambda: self._run.log(numbers, step=step))
        if "loss/lm" in numbers:
            self._line(step, numbers)
        else:
            self._held_out_line(step, numbers)

    def finish(self) -> None:
        if self._speaks:
            self._file.close()
            self._guarded(lambda: self._run.finish())

    def _line(self, step: int, numbers: Numbers) -> None:
        done = max(1, step - self._first)
        left = (time.monotonic() - self._began) / done * (self._total - step)
        recalls = [v for k, v in numbers.items() if k.endswith("recall@1")]
        recall = sum(recalls) / max(1, len(recalls))
        print(
            f"step {step:>5}/{self._total}  lm {numbers['loss/lm']:.3f}  "
            f"router {numbers['loss/router']:.3f}  recall@1 {recall:.3f}  "
            f"lr {numbers['lr']:.1e}  {numbers['step_ms']:.0f} ms  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )

    def _held_out_line(self, step: int, numbers: Numbers) -> None:
        shown = (f"{key.removeprefix('held_out/')} {value:.3f}" for key, value in numbers.items())
        print(f"step {step:>5} held out: {', '.join(shown)}", file=sys.stderr, flush=True)

    def _guarded(self, call: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # tracking must never end a run
            print(f"W&B: {error}; training goes on without it", file=sys.stderr)
            self._run = None


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
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(path)


def _start_wandb(config: Config, run_id: str | None) -> Any:
    """The W&B run, or None: off, not installed, or it cannot even start offline."""
    settings = config.training.wandb
    if settings.mode == "off":
        return None
    try:
        import wandb
    except ImportError:
        print("W&B is not installed: metrics go to metrics.jsonl alone", file=sys.stderr)
        return None
    for mode in dict.fromkeys((_wandb_mode(settings), "offline")):
        try:
            return wandb.init(
                project=settings.project,
                group=settings.group,
                tags=list(settings.tags),
                name=config.path.name,
                dir=str(config.path),
                id=run_id,
                resume="allow" if run_id and mode == "online" else None,
                mode=mode,
                config=to_plain(config),
                settings=wandb.Settings(
                    init_timeout=settings.init_timeout_s, silent=True, console="off"
                ),
            )
        except Exception as error:  # unreachable, not logged in, broken: never a reason to stop
            print(f"W&B ({mode}): {error}", file=sys.stderr)
    return None


def _wandb_mode(settings: WandbConfig) -> str:
    """online when asked for, or when a key is at hand."""
    if settings.mode != "auto":
        return settings.mode
    logged_in = "WANDB_API_KEY" in os.environ or "api.wandb.ai" in _netrc()
    return "online" if logged_in else "offline"


def _netrc() -> str:
    path = Path.home() / ".netrc"
    try:
        return path.read_text(errors="ignore")
    except OSError:  # not there, or not ours to read
        return ""
