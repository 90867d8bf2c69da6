"""Ranks: worker processes that hold parts of memories, started again when one fails."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch

from msa_train.errors import ConfigError, MSAError, RankError
from msa_train.memory.bank.checks import check_keys
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.ranks.searcher import DistributedSearcher
from msa_train.memory.ranks.snapshot import described, pack
from msa_train.memory.ranks.worker_group import Call, WorkerAnswer, WorkerGroup
from msa_train.memory.search.loader import BankLoader, KeyChecks, Share
from msa_train.memory.search.settings import TierSettings
from msa_train.model.config import RouterConfig

T = TypeVar("T")

RESTARTS, WINDOW_S = 3, 600.0  # after so many restarts within that time it stops


class Ranks:
    """This process, rank 0, and count-1 workers on the same machine. Thread-safe.

    A worker that dies, fails or is late makes the request fail with RankError; the next request
    starts all workers again and opens its snapshot in them, RESTARTS times within WINDOW_S.

    shares: part of the documents that each rank holds, in proportion (None: equal; 0: none).
    timeout_s of a request; start_timeout_s of starting workers and of opening a bank in them (every
    router key is read). device: "cuda" (rank r on card r) or "cpu" (None: cuda where there is one);
    on a CPU the ranks divide its cores. Raises ConfigError for settings that cannot be.
    """

    def __init__(
        self,
        count: int,
        shares: Sequence[float] | None = None,
        tiers: TierSettings | None = None,
        timeout_s: float = 60.0,
        start_timeout_s: float = 300.0,
        device: str | None = None,
    ):
        self.count, self.shares = count, _checked_shares(shares, count)
        self.device, self._settings = _device(device, count), tiers or TierSettings()
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._loader = BankLoader(self._settings, self.device, Share(0, self.shares))
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()  # filled by the garbage collector, in any thread
        self._group: list[WorkerGroup] = []  # none or one
        self._searchers: weakref.WeakSet[DistributedSearcher] = weakref.WeakSet()
        self._epoch = 0
        self._restarts: deque[float] = deque()
        self._failure = ""
        self._stopped: str | None = None
        self._at_exit = weakref.finalize(self, _close_all, self._group)

    def start(self) -> Ranks:
        """Starts the workers. Raises RankError for one that does not start."""
        told = {"shares": self.shares, "tiers": asdict(self._settings)}
        given = self.count, self.device, told, self._timeout_s, self._start_timeout_s
        try:
            self._group.append(WorkerGroup(*given))
        except RankError as error:
            self._failure = str(error)
            raise
        self._epoch += 1
        return self

    def searcher(self, bank: BankSnapshot, router: RouterConfig) -> DistributedSearcher:
        """A snapshot, opened in every rank and searched by all; let go of when nobody has it.

        Raises GenerationGoneError where the bank was compacted meanwhile (open it again), BankError
        for damage, RankError.
        """
        with self._lock:
            number = next(self._numbers)
            found = DistributedSearcher(self.ask, number, bank, router, self.shares, self.device)
            weakref.finalize(found, self._dropped.append, number).atexit = False
            found.own = self._guarded(
                lambda group: self._open(
                    group, found, lambda checks: self._loader.searcher(bank, router, checks)
                )
            )
            self._searchers.add(found)
            return found

    def ask(
        self, searcher: DistributedSearcher, call: Call, own: Callable[[], T]
    ) -> tuple[T, dict[int, WorkerAnswer]]:
        """A request to all ranks that `call` names; see WorkerGroup.ask."""

        def run(group: WorkerGroup) -> tuple[T, dict[int, WorkerAnswer]]:
            if searcher.epoch != self._epoch:
                self._open(group, searcher, lambda checks: check_keys(checks.files(searcher.bank)))
            return group.ask(call, own)

        with self._lock:
            return self._guarded(run)

    def close(self) -> None:
        """Ends the workers; requests fail from now on."""
        with self._lock:
            self._stopped = self._stopped or "they were closed"
            _close_all(self._group)
            self._loader.close()

    def _guarded(self, run: Callable[[WorkerGroup], T]) -> T:
        """run(group); a group that failed, or was interrupted in a request, is ended."""
        group = self._running()
        try:
            self._forget(group)
            return run(group)
        except RankError as error:
            self._failure = str(error)
            _close_all(self._group)
            raise
        except MSAError:
            raise
        except BaseException:  # an answer under way would be taken for the next one's
            _close_all(self._group)
            raise

    def _running(self) -> WorkerGroup:
        if self._stopped:
            raise RankError(f"the ranks do not run: {self._stopped}")
        if not self._group:
            now = time.monotonic()
            while self._restarts and self._restarts[0] < now - WINDOW_S:
                self._restarts.popleft()
            if len(self._restarts) >= RESTARTS:
                self._stopped = (
                    f"they were restarted {RESTARTS} times within {WINDOW_S:g} s and failed again; "
                    f"the last time: {self._failure}"
                )
                raise RankError(f"the ranks do not run: {self._stopped}")
            self._restarts.append(now)
            self.start()
        return self._group[0]

    def _open(
        self, group: WorkerGroup, searcher: DistributedSearcher, own: Callable[[KeyChecks], T]
    ) -> T:
        """Opens a snapshot in the workers that hold some of it, while own() runs here. Each file of
        router keys that none has read yet is compared with its checksum by one of them."""
        bank, checkers = searcher.bank, searcher.holders or [0]
        unread = self._unread(bank)
        head = {
            "do": "open",
            "snapshot": searcher.number,
            "router": asdict(searcher.router),
            "documents": len(bank.numbers),
            "check": unread,
            "checkers": checkers,
            **described(bank),
        }
        tensors = {rank: {"live": pack(bank.live)} for rank in searcher.workers}
        call = Call(head, f"opening {searcher}", tensors)
        place, count = (checkers.index(0), len(checkers)) if 0 in checkers else (0, 1)
        checks = KeyChecks(tuple(unread) if 0 in checkers else (), place, count)
        mine, _ = group.ask(call, lambda: own(checks), self._start_timeout_s)
        searcher.epoch = self._epoch
        return mine

    def _unread(self, bank: BankSnapshot) -> list[str]:
        """Names of the segments that are not part of a snapshot which all ranks have open."""
        others = [each for each in self._searchers if each.epoch == self._epoch]
        held = {segment.identity for each in others for segment in each.bank.segments}
        return [each.entry.name for each in bank.segments if each.identity not in held]

    def _forget(self, group: WorkerGroup) -> None:
        """Lets the workers let go of snapshots that nobody has any more."""
        gone = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if gone:
            head, everyone = {"do": "drop", "snapshots": gone}, {rank: {} for rank in group.workers}
            group.ask(Call(head, "letting go of old snapshots", everyone), lambda: None)


def _close_all(groups: list[WorkerGroup]) -> None:
    while groups:
        groups.pop().close()


def _checked_shares(shares: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if count < 1:
        raise ConfigError(f"ranks is {count}: give 1 or more")
    if shares is None:
        return (1.0,) * count
    usable = len(shares) == count and all(0 <= x < float("inf") for x in shares) and sum(shares) > 0
    if not usable:
        raise ConfigError(
            f"shares are {list(shares)} for {count} ranks: give {count} numbers of 0 or more, not "
            "all 0 (the part of the documents that each rank holds)"
        )
    return tuple(map(float, shares))


def _device(given: str | None, count: int) -> torch.device:
    kind = given or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if torch.cuda.device_count() < count:
        raise ConfigError(
            f"ranks is {count}, but this machine has {torch.cuda.device_count()} GPUs: a rank "
            "needs one of its own; start fewer, or give the device cpu"
        )
    return torch.device("cuda", 0)
