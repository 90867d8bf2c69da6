"""What each rank says of itself in OUTPUT/ranks, for whoever asks why a run has ended.

OUTPUT/ranks/rank-00003.json   who it is and since when; once it has ended: its exit code and why
OUTPUT/ranks/rank-00003.stack  Python stacks, where a signal ended it (SIGSEGV) or asked for them,
                               and where it was stuck (see watchdog)

OUTPUT/ranks/stop              made by `msa train` to ask the ranks, on whatever machine they are,
                               to save and end

A rank that was killed leaves no end behind. So it is told from those that then missed it, on any
machine that shares the output.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_pipeline import files

_LINES = 20  # of what a rank said last


@dataclass(frozen=True)
class RankRecord:
    """One rank of the newest start. began, ended: seconds since the epoch, of its own clock;
    said: its traceback, or its error's message."""

    rank: int
    host: str
    process: int
    began: float
    code: int | None = None
    ended: float | None = None
    said: str = ""
    stack: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


class LastWords:
    """A rank's own record, which is there from now on."""

    def __init__(self, output: Path):
        self.rank = int(os.environ.get("RANK", "0"))
        self._path = path_of(output, self.rank)
        self._record = RankRecord(self.rank, socket.gethostname(), os.getpid(), time.time())
        self._path.parent.mkdir(exist_ok=True)
        self._write()
        # faulthandler keeps its descriptor: it writes when nothing else in this process can.
        self._stack = self._path.with_suffix(".stack").open("w")
        faulthandler.enable(self._stack)
        faulthandler.register(signal.SIGUSR1, self._stack)

    def end(self, code: int, said: str) -> None:
        """said: an error's message or traceback. Never fails: the disk may be full."""
        self._record = replace(self._record, code=code, ended=time.time(), said=said)
        with contextlib.suppress(OSError):
            self._write()

    def stack_now(self) -> None:
        """Write the stacks of all threads."""
        faulthandler.dump_traceback(self._stack)

    def stack_later(self, seconds: float) -> None:
        """Write them in `seconds`, unless this is called again: even where no thread gets the
        interpreter any more."""
        faulthandler.dump_traceback_later(seconds, file=self._stack)

    def beside(self, suffix: str) -> Path:
        """Another file of this rank."""
        return self._path.with_suffix(suffix)

    def _write(self) -> None:
        files.replace_file(self._path, json.dumps(asdict(self._record)))


def read(output: Path) -> dict[int, RankRecord]:
    """Records by rank; what cannot be read is left out."""
    found = {}
    for path in sorted(_folder(output).glob("rank-*.json")):
        try:
            record = RankRecord(**json.loads(path.read_text()))
            stack = path.with_suffix(".stack")
            said = stack.read_text() if stack.exists() else ""
        except (OSError, ValueError, TypeError):
            continue
        found[record.rank] = replace(record, stack=said)
    return found


def clear(output: Path) -> None:
    """Forget the ranks of the start before; by one rank, before any has a record."""
    for path in (*_folder(output).glob("rank-*"), _stop(output)):
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)


def ask_to_stop(output: Path) -> None:
    """The ranks of a start that has records."""
    _stop(output).touch()


def asked_to_stop(output: Path) -> bool:
    return _stop(output).exists()


def blamed(records: dict[int, RankRecord], first_dead: int | None = None) -> list[RankRecord]:
    """Whose end has ended the others; none where all ended well, or none had begun.

    Those without an end were killed; where several were, all of one machine perhaps, or those that
    hung and were then ended: first_dead is the rank that was seen dead before all others.
    Otherwise the first that met an error: the others' errors follow from its absence.
    """
    silent = [each for each in records.values() if each.code is None]
    if silent:
        return [each for each in silent if each.rank == first_dead] or silent
    failed = [each for each in records.values() if each.code not in (0, 128 + signal.SIGTERM)]
    return sorted(failed, key=lambda each: each.ended or 0.0)[:1]


def told(record: RankRecord) -> str:
    """What became of a rank, and what it said last."""
    if record.code is None:
        what = f"{record} was killed or stopped, or its machine is gone: it said nothing of an end"
    else:
        what = f"{record} was the first to end, with exit code {record.code}"
    last = (record.said or record.stack).rstrip().splitlines()[-_LINES:]
    return "\n  ".join([f"{what}; it said last:" if last else what, *last])


def of_error(error: BaseException) -> str:
    """Its traceback."""
    return "".join(traceback.format_exception(error))


def path_of(output: Path, rank: int) -> Path:
    """A rank's record."""
    return _folder(output) / f"rank-{rank:05}.json"


def _stop(output: Path) -> Path:
    return _folder(output) / "stop"


def _folder(output: Path) -> Path:
    return output / "ranks"
