"""Ranks that make no progress end by themselves, naming the one that holds up the others.

A thread of each rank looks at its main thread. One that stood still for half of
training.timeout_s asks all ranks where they are; after the whole of it, it judges by their answers:

OUTPUT/ranks/rank-waits           a rank waits, and asks
OUTPUT/ranks/rank-00003.answer    where rank 3 is: one that is stopped or gone gives no answer
OUTPUT/ranks/rank-stuck           the verdict, upon which all ranks end

Files, and not torch's store: rank 0 holds the store, and may be the one that is stuck. A healthy
run writes none of them. torch's own timeouts are longer (see groups.start), and are left for where
the output itself does not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from data_pipeline import files
from msa_train.errors import StuckError
from msa_train.training import last_words
from msa_train.training.last_words import LastWords, RankRecord
from msa_train.training.saying import say

_EVERY_S = 1.0
_LINGER_S = 3.0  # a stuck rank ends after the others: they would meet its broken connections
_STACK_AFTER = 0.75  # of the timeout, for a thread that does not get the interpreter any more


@dataclass(frozen=True)
class Whereabouts:
    """Where a rank is. phases: how many it has begun; collectives: how many operations of process
    groups. Both are the same on all ranks of a run that stands still, but for those behind."""

    phases: int
    collectives: int
    doing: str
    where: str


class Watchdog:
    """Of one rank, from `start` until `stop`."""

    def __init__(
        self,
        output: Path,
        words: LastWords,
        timeout_s: float,
        collectives: Callable[[], int] | None = None,
    ):
        self._output, self._words, self._timeout_s = output, words, timeout_s
        self._collectives = collectives or _collectives
        self._every_s = min(_EVERY_S, timeout_s / 20)
        self._main = threading.main_thread().ident
        self._phases, self._doing, self._beats = 0, "starting", 0
        self._answered: Whereabouts | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def phase(self, doing: str) -> None:
        """The main thread begins something that all ranks do in the same order."""
        self._doing = doing
        self._phases += 1

    def beat(self) -> None:
        """The main thread has got on within its phase."""
        self._beats += 1

    def _look(self) -> None:
        asks = False
        before, seen = time.monotonic(), time.monotonic()
        pulse = self._pulse()
        while not self._stopped.wait(self._every_s):
            self._words.stack_later(self._timeout_s * _STACK_AFTER)
            now = time.monotonic()
            if now - before > self._timeout_s / 4:  # this process was stopped, and goes on
                seen += now - before
            before = now
            if pulse != (pulse := self._pulse()):
                seen = now
                if asks:
                    with contextlib.suppress(OSError):  # another rank that asked has removed it
                        files.remove(_asked(self._output))
                asks = False
            with contextlib.suppress(OSError):  # full or away for a moment: tried again
                asks = self._step(now - seen, asks)
        faulthandler.cancel_dump_traceback_later()

    def _step(self, idle_s: float, asks: bool) -> bool:
        asked = _asked(self._output)
        if idle_s > self._timeout_s / 2 and not asked.exists():
            asked.touch()
            asks = True
        if not asked.exists():
            self._forget()
            return asks
        self._answer()
        if idle_s > self._timeout_s and not verdict(self._output):
            files.replace_file(_stuck(self._output), json.dumps(asdict(self._judge())))
        if found := verdict(self._output):
            self._end(found)
        return asks

    def _pulse(self) -> tuple[int, int, int]:
        return self._phases, self._beats, self._collectives()

    def _answer(self) -> None:
        frame = sys._current_frames()[self._main]
        place = traceback.extract_stack(frame)[-1]
        where = f"{place.name} ({place.filename}:{place.lineno})"
        answer = Whereabouts(self._phases, self._collectives(), self._doing, where)
        if answer != self._answered:
            files.replace_file(self._words.beside(".answer"), json.dumps(asdict(answer)))
            self._answered = answer

    def _forget(self) -> None:
        """The question was withdrawn: who does not answer the next one is to be seen."""
        if self._answered is not None:
            files.remove(self._words.beside(".answer"))
            self._answered = None

    def _judge(self) -> Verdict:
        records = last_words.read(self._output)
        return judge(records, _answers(self._output, records), self._timeout_s)

    def _end(self, found: Verdict) -> None:
        """Ends this process."""
        own = self._words.rank
        if own in found.ranks:
            self._words.stack_now()
            frame = sys._current_frames()[self._main]
            said = "".join([found.said, "\n", *traceback.format_stack(frame)]).rstrip()
            self._words.end(StuckError.exit_code, said)
            say(f"rank {own} is stuck here:\n{said}")
            time.sleep(min(_LINGER_S, self._timeout_s))
        else:
            if own == found.teller:
                say(found.said)
            self._await_end_of(found.ranks)
            self._words.end(StuckError.exit_code, found.said)
        sys.stdout.flush()
        os._exit(StuckError.exit_code)

    def _await_end_of(self, ranks: list[int]) -> None:
        """So that the stuck one is the first to have said that it ends."""
        deadline = time.monotonic() + min(_LINGER_S, self._timeout_s) / 2
        while time.monotonic() < deadline:
            records = last_words.read(self._output)
            if all(records[rank].code is not None for rank in ranks if rank in records):
                return
            time.sleep(0.1)


@dataclass(frozen=True)
class Verdict:
    """ranks: the stuck ones; teller: the rank that says it for all others."""

    ranks: list[int]
    teller: int
    said: str


def judge(
    records: dict[int, RankRecord], answers: dict[int, Whereabouts], timeout_s: float
) -> Verdict:
    """Who holds up the others: those that do not answer, else those that are behind, else all."""
    living = {rank: each for rank, each in records.items() if each.code is None}
    silent = [rank for rank in living if rank not in answers]
    marks = {rank: (each.phases, each.collectives) for rank, each in answers.items()}
    behind = [rank for rank, mark in marks.items() if mark == min(marks.values())]
    stuck = sorted(silent or behind)
    lines = [f"no progress for {timeout_s:.0f} s (training.timeout_s):"]
    for rank in stuck:
        who = records.get(rank, f"rank {rank}")
        if rank in answers:
            lines.append(f"{who} is stuck {answers[rank].doing}, in {answers[rank].where}")
        else:
            lines.append(f"{who} does not answer: it is stopped, or its machine is gone")
            lines += [f"  {line}" for line in _stack_of(records[rank])]
    others = sorted(set(answers) - set(stuck))
    if not others and len(stuck) > 1:
        lines.append("all ranks wait at the same place: look at the network between their machines")
    return Verdict(stuck, min(others or stuck), "\n".join(lines))


def verdict(output: Path) -> Verdict | None:
    """That of this start; None: there is none."""
    try:
        return Verdict(**json.loads(_stuck(output).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _stack_of(record: RankRecord) -> list[str]:
    return record.stack.rstrip().splitlines()


def _answers(output: Path, records: dict[int, RankRecord]) -> dict[int, Whereabouts]:
    found = {}
    for rank in records:
        with contextlib.suppress(OSError, ValueError, TypeError):
            path = last_words.path_of(output, rank).with_suffix(".answer")
            found[rank] = Whereabouts(**json.loads(path.read_text()))
    return found


def _collectives() -> int:
    """Operations that this rank has begun, of all its process groups."""
    groups = list(dist.distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


def _asked(output: Path) -> Path:
    return output / "ranks" / "rank-waits"


def _stuck(output: Path) -> Path:
    return output / "ranks" / "rank-stuck"
