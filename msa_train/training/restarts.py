"""How a start of the ranks ended, whether it is worth another one, and what is said of it."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from msa_train import checkpoint_folders
from msa_train.errors import ConfigError, RankError, StuckError
from msa_train.training import last_words
from msa_train.training.last_words import RankRecord
from msa_train.training.saying import say

_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_BUG = 1  # a traceback: of a bug, or of what a broken link, card or machine looks like in Python
_DEATHS = (_BUG, RankError.exit_code, StuckError.exit_code)  # what may not come again
_UNREACHED = 255  # of ssh, where a machine is not there


class Deaths:
    """Which ranks a start brought up, and which of this machine's died first (None: none yet)."""

    def __init__(self, output: Path, ranks: int):
        self._output, self._ranks = output, ranks
        self._before = {each.began for each in last_words.read(output).values()}
        self._here: list[RankRecord] = []
        self.first: int | None = None

    def records(self) -> dict[int, RankRecord]:
        """Of this start alone."""
        found = last_words.read(self._output)
        return {rank: each for rank, each in found.items() if each.began not in self._before}

    def look(self) -> None:
        if self.first is not None:
            return
        if not self._here:
            begun = self.records()
            if len(begun) < self._ranks:
                return
            self._here = [each for each in begun.values() if each.host == socket.gethostname()]
        self.first = next((each.rank for each in self._here if not _lives(each.process)), None)


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class End:
    """code: the launcher's; stopped: the signal that this process was given (0: none); first_dead:
    see Deaths; reached, steps: where the run stands, known where the launcher named no error."""

    code: int
    stopped: int
    records: dict[int, RankRecord]
    first_dead: int | None = None
    reached: int = 0
    steps: int = 0

    @property
    def _done(self) -> bool:
        return self.code <= 0 and self.reached >= self.steps

    @property
    def _blamed(self) -> list[RankRecord]:
        return last_words.blamed(self.records, self.first_dead)

    @property
    def by_death(self) -> bool:
        """Of a rank, its machine or the launcher; and not for an error that would come again, or by
        a signal."""
        if self.stopped or self._done:
            return False
        if not self.records:
            return self.code <= 0 or self.code in (*_DEATHS, _UNREACHED)
        return self.code <= 0 or any(each.code in (None, *_DEATHS) for each in self._blamed)

    def told(self) -> str:
        if self._blamed:
            return "\n".join(last_words.told(each) for each in self._blamed)
        if self.code <= 0:
            return "the launcher was killed from outside"
        return f"the ranks did not all come: exit code {self.code}"

    def result(self) -> int:
        """Exit code of the whole. Raises RankError where the launcher's says nothing."""
        if self.stopped:
            return 128 + self.stopped
        if self._done:
            return 0
        if self.code <= 0 and not self._blamed:
            raise RankError(
                f"the launcher ended at step {self.reached} of {self.steps} without an error: it "
                "or a rank was killed from outside; continue with --resume"
            )
        if any(each.code is None for each in self._blamed):
            kind = StuckError if self.code == StuckError.exit_code else RankError
            raise kind(f"{self.told()}\ncontinue with --resume, or start with --max-restarts")
        if any(each.code == _BUG for each in self._blamed):
            say(self.told())
        return self.code


class Restarts:
    """A run goes on after a death, but gives up after `limit` restarts without a new checkpoint in
    between: what it dies of lies then before the next one, and comes again.

    The first restart is at once, each further one without a checkpoint after a pause that doubles,
    for a machine that is starting up. A start without ranks is a death once there were some; before
    that it is for the user to look into.
    """

    def __init__(self, limit: int, output: Path):
        if limit < 0:
            raise ConfigError(f"--max-restarts is {limit}: give 0 or more")
        self._limit, self._folder = limit, output / "checkpoints"
        self._from, self._in_a_row = self._newest(), 0
        self._begun = False

    def another(self, end: End) -> bool:
        """Whether to start again; waits until it is time to."""
        self._begun = self._begun or bool(end.records)
        if not (self._begun and end.by_death):
            return False
        newest = self._newest()
        if newest != self._from:
            self._from, self._in_a_row = newest, 0
        if self._in_a_row >= self._limit:
            if self._limit:
                say(f"given up after {self._limit} restarts without a new checkpoint")
            return False
        self._in_a_row += 1
        say(end.told())
        place = "the start: there is no checkpoint" if newest is None else str(newest)
        say(f"restart {self._in_a_row} of {self._limit}, from {place}")
        if self._in_a_row > 1:
            time.sleep(min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (self._in_a_row - 2)))
        return True

    def _newest(self) -> Path | None:
        """The ranks read it whole and say so where it is damaged."""
        with contextlib.suppress(OSError):
            for path in checkpoint_folders.newest_first(self._folder):
                if checkpoint_folders.flaw_of(path) is None:
                    return path
        return None
