"""How much of a run's time goes into steps that count while ranks are killed:
`msa bench goodput`."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from msa_train.bench.checkpoint import RANKS, prepare, rows_of, settings, train
from msa_train.bench.runner import log
from msa_train.training import last_words

_STAGES = "[{name: main, steps: 1000000, epochs: 500000, lr: 1e-3, router_weight: 1}]"
_END_S = 300.0


def measure(
    seconds: float = 300.0, kill_every_s: float = 60.0, checkpoint_every: int = 20,
    async_save: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row of a run whose ranks are killed with SIGKILL, one at a time, and one of a run that is
    left alone."""
    found = []
    for kills in (kill_every_s, None):
        log("goodput: " + ("left alone" if kills is None else f"a kill every {kills:.0f} s"))
        with tempfile.TemporaryDirectory(prefix="msa-bench-") as made:
            given = settings(
                Path(made) / "run", "toy", _STAGES, checkpoint_every=checkpoint_every,
                async_save=async_save,
            )  # fmt: skip
            found.append(_row(prepare(given), seconds, kills))
    return found


def _row(output: Path, limit_s: float, every_s: float | None) -> dict[str, Any]:
    """Wall time by what it went to. Steps that are done again are lost; what is left over is the
    death itself, until the launcher has ended, and `msa train`'s own start."""
    began, kills = time.time(), 0
    run = train(output, "--max-restarts", "1000")
    seen: dict[tuple[float, int], dict[str, Any]] = {}  # rows, by their start
    rng = random.Random(0)
    next_kill = began + every_s if every_s else float("inf")
    while (now := time.time()) < began + limit_s and run.poll() is None:
        time.sleep(0.2)
        start = max((each.began for each in last_words.read(output).values()), default=0.0)
        seen |= {(start, row["step"]): row for row in rows_of(output)}
        if now >= next_kill:
            kills += _kill(output, rng)
            next_kill += every_s
    wall = time.time() - began
    rows = rows_of(output)  # before it saves and ends
    again = _lost(output, len(rows))
    run.send_signal(signal.SIGTERM)
    run.wait(_END_S)
    starts = [row for row in seen.values() if "start/first_step_s" in row]
    starting = [sum(v for k, v in row.items() if k[:6] == "start/") for row in starts]
    parts = {name for row in starts for name in row if name[:6] == "start/"}
    steps = [row["step_ms"] / 1e3 for row in rows]
    lost = again * median(steps)
    stall = sum(row["checkpoint_stall_s"] for row in rows)
    return {
        "kills": kills,
        "starts": len({row["start/first_step_s"] for row in starts}),
        "wall_s": round(wall, 1),
        "goodput": round(sum(steps) / wall, 3),
        "steps": len(rows),
        "steps_s": round(sum(steps), 1),
        "lost_steps": again,
        "lost_s": round(lost, 1),
        "stall_s": round(stall, 1),
        "start_s": round(median(starting), 1) if starting else None,
        **{name: round(median(row.get(name, 0.0) for row in starts), 1) for name in sorted(parts)},
    }


def _lost(output: Path, counted: int) -> int:
    """Steps that were done more than once, by what the run has said of each."""
    said = (output / "log").read_text().splitlines()
    return max(0, sum(line.startswith("step ") for line in said) - counted - 1)


def _kill(output: Path, rng: random.Random) -> int:
    """A random rank that lives; returns how many that were."""
    ranks = [each.process for each in last_words.read(output).values() if each.code is None]
    living = [process for process in ranks if psutil.pid_exists(process)]
    if len(living) < RANKS:  # it is starting
        return 0
    os.kill(rng.choice(living), signal.SIGKILL)
    return 1
