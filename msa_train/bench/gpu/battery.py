"""`msa bench gpu`: everything that only a GPU can say, in one sitting.

Parts are independent: each has a process and a time limit of its own, so one that crashes, hangs or
runs out of memory costs itself alone. What a part has measured is on the disk at once; parts that
were measured on this card are kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from msa_train.bench.floor import set_floor_sizes
from msa_train.bench.gpu.parts import PARTS, Work, known_parts
from msa_train.bench.gpu.results import DONE, PartResult, Provenance, Results, Row, reason
from msa_train.bench.gpu.sizes import FULL, TOY
from msa_train.bench.runner import Workers, in_process, log
from msa_train.errors import ConfigError, NoDeviceError

_LEAST_S = 10.0  # a part is not begun for less
_LEFT_OUT = "left out: it is not installed, or cannot run here (standard error says which)"


@dataclass(frozen=True)
class Sitting:
    """parts: by name (none: all, `backbone` where there is one, or a toy). minutes: for all of them
    together. toy: small sizes on the CPU. again: measure parts that are there already. backbone:
    folder of a model to train on."""

    parts: Sequence[str] = ()
    minutes: float = 25.0
    toy: bool = False
    again: bool = False
    backbone: Path | None = None

    def __post_init__(self) -> None:
        known_parts(self.parts)
        if not self.minutes > 0:  # nor not a number
            raise ConfigError(f"minutes is {self.minutes}: give more than 0")
        if self.backbone is not None and not self.backbone.is_dir():
            raise ConfigError(f"backbone is {self.backbone}: there is no such folder")

    @property
    def usual(self) -> tuple[str, ...]:
        """The parts where none are named: a toy has a backbone of its own."""
        there = self.toy or self.backbone is not None
        return tuple(name for name in PARTS if name != "backbone" or there)


def measure(sitting: Sitting, out: Path) -> Results:
    """All parts, written to `out` after every row.

    Raises NoDeviceError where torch sees no GPU and toy sizes were not asked for, ConfigError for
    an unknown part or toy sizes over measured ones, DataError where `out` is another kind of file.
    """
    before = Results.read(out)
    if before.parts and before.toy != sitting.toy:
        kinds = ("toy", "measured") if before.toy else ("measured", "toy")
        raise ConfigError(
            f"{out} holds {kinds[0]} numbers, and these would be {kinds[1]}: give another --json"
        )
    if sitting.toy:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the parts' processes: all on the CPU
    elif not torch.cuda.is_available():
        raise NoDeviceError(
            "torch sees no GPU here: run this where there is one, or give --toy (make gpu-toy) to "
            "run the same code at toy size on the CPU"
        )
    place, end = in_process(Provenance.here), time.monotonic() + 60 * sitting.minutes
    results = replace(before, toy=sitting.toy)
    for name in known_parts(sitting.parts or sitting.usual):
        kept = results.parts.get(name)
        if kept and not sitting.again and kept.kept_on(place.card, sitting.toy):
            log(f"gpu: {name} was measured on this card, and is kept (--again measures anew)")
            continue
        seconds = min(60 * PARTS[name].minutes, end - time.monotonic())
        work = Work(TOY if sitting.toy else FULL, seconds, sitting.backbone)

        def write(part: PartResult, name: str = name, kept: PartResult | None = kept) -> None:
            nonlocal results
            results = results.with_part(name, part.over(kept, place.card, sitting.toy))
            results.write(out)

        write(_measured(name, work, place, write))
    return results


def _measured(
    name: str, work: Work, place: Provenance, write: Callable[[PartResult], None]
) -> PartResult:
    """A part in a process of its own; `write` is given what there is after every row."""
    if work.seconds < _LEAST_S:
        return PartResult("not begun: no time was left", 0.0, ())
    rows: list[Row] = []
    began, state = time.monotonic(), DONE
    try:
        for row in _asked(name, work, began + work.seconds):
            rows.append(replace(row, **asdict(place), toy=work.sizes.toy))
            write(PartResult("cut off", time.monotonic() - began, tuple(rows)))
    except Exception as error:  # of a user, of a library, or the end of a process
        state = reason(error)
        log(f"gpu: {name} ended: {state}")
    there = {row.what for row in rows}
    missing = (
        Row(what, unit, failed=_LEFT_OUT, **asdict(place), toy=work.sizes.toy)
        for what, unit in PARTS[name].planned(work.sizes)
        if state == DONE and what not in there
    )
    return PartResult(state, round(time.monotonic() - began, 1), (*rows, *missing))


def _asked(name: str, work: Work, end: float) -> Any:
    """Rows of a part as they are measured. Raises what ends it, RankError where time does."""
    threads = torch.get_num_threads()
    with Workers(f"part {name}", [partial(next_row, name, work)], threads) as workers:
        while True:
            workers.timeout_s = max(0.0, end - time.monotonic())
            [row] = workers.ask()
            if row is None:
                return
            yield row


def next_row(name: str, work: Work) -> Callable[[], Row | None]:
    """In the part's process: gives row after row, at last None."""
    if work.sizes.floor is not None:
        set_floor_sizes(*work.sizes.floor)
    rows = PARTS[name].run(work)
    return lambda: next(rows, None)


def failures(results: Results) -> list[str]:
    """A line for each part that did not end, and each row that could not be measured."""
    lines = []
    for name, part in results.parts.items():
        if part.state != DONE:
            lines.append(f"{name}: {part.state}")
        lines += [f"{name}: {row.what}: {row.failed}" for row in part.rows if row.failed]
    return lines


def complete(results: Results) -> bool:
    """Whether all was measured that can be: at toy size, but for what a CPU leaves out."""
    may_fail = {"", _LEFT_OUT} if results.toy else {""}
    return all(
        part.state == DONE and all(row.failed in may_fail for row in part.rows)
        for part in results.parts.values()
    )
