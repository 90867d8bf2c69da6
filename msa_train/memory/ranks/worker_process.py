"""Worker processes: how their driver starts, watches and ends them, and how they run.

A worker is a Python module that calls `run_worker`. It talks with its driver, the process that
started it, through one channel, and what it does is its own: search_worker.py, encoding.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import torch
from msa_kernels import chunk_scores, document_scores
from torch import Tensor

from data_pipeline.errors import DataError
from msa_train import errors
from msa_train.errors import MSAError, RankError
from msa_train.memory.bank.snapshot import GenerationGoneError
from msa_train.memory.ranks.channel import Channel, Closed, Late, Packet

_LINES = 20  # of a worker's output are kept, for errors
_EXIT_S = 5.0
_WATCH_S = 1.0


@dataclass(frozen=True)
class Deadline:
    """What must be done within limit_s seconds, that is until `at` (time.monotonic()).

    setting: what gives more time, for errors.
    """

    doing: str
    limit_s: float
    at: float
    setting: str

    @classmethod
    def of(cls, doing: str, limit_s: float, setting: str) -> Deadline:
        """From now on."""
        return cls(doing, limit_s, time.monotonic() + limit_s, setting)


# In the driver


class Worker:
    """A worker as its driver sees it: the process of a rank, and the channel to it.

    module: what it runs. keep: file descriptors that it holds as well, until it ends.
    """

    def __init__(self, rank: int, module: str, threads: int, keep: Iterable[int] = ()):
        ours, theirs = socket.socketpair()
        self.rank, self.channel = rank, Channel(ours)
        with theirs:
            # Inherited once: its end closes with the worker, and ours with this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *keep],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": _path(), "OMP_NUM_THREADS": str(threads)},
            )
        self._lines: deque[str] = deque(maxlen=_LINES)
        given = self._process.stdout, self._lines
        self._reader = threading.Thread(target=_keep_last, args=given, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"

    def send(self, head: dict[str, Any], tensors: Mapping[str, Tensor], deadline: Deadline) -> None:
        """Raises RankError for a worker that is gone or late."""
        with self._named(deadline):
            self.channel.send(head, tensors, deadline.at)

    def receive(self, deadline: Deadline) -> Packet:
        """Its next message. Raises RankError for a worker that is gone or late."""
        with self._named(deadline):
            return self.channel.receive(deadline.at)

    @contextlib.contextmanager
    def _named(self, deadline: Deadline) -> Iterator[None]:
        try:
            yield
        except Closed:
            raise self.gone(deadline) from None
        except Late:
            raise self.late(deadline) from None

    def gone(self, deadline: Deadline) -> RankError:
        return RankError(f"{self} {self.fate()} ({deadline.doing})")

    def late(self, deadline: Deadline) -> RankError:
        return late([self], deadline)

    def exit_code(self, within_s: float = _EXIT_S) -> int | None:
        """None where it does not end within this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.returncode

    def last_lines(self) -> str:
        """What an ended worker printed last, to be added to an error."""
        self._reader.join(_EXIT_S)
        lines = "\n".join(f"  {line}" for line in list(self._lines))
        return f"; its last lines:\n{lines}" if lines else ""

    def fate(self) -> str:
        """How a worker that closed its channel ended."""
        code = self.exit_code()
        if code is None:
            return "closed its connection"
        killed = f"was killed by {signal.Signals(-code).name}" if code < 0 else ""
        return f"{killed or f'ended with code {code}'}{self.last_lines()}"

    def kill(self) -> None:
        """Ends it whatever it does, even where it was stopped; nothing of it is left."""
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self._reader.join(_EXIT_S)
        self._process.stdout.close()


W = TypeVar("W", bound=Worker)


def ready(workers: Sequence[W], timeout_s: float) -> list[W]:
    """Those that have a message or are gone, as soon as there is one; none after timeout_s."""
    poll = select.poll()
    for worker in workers:
        poll.register(worker.channel.fileno(), select.POLLIN)
    found = {end for end, _ in poll.poll(max(0.0, timeout_s) * 1000)}
    return [worker for worker in workers if worker.channel.fileno() in found]


def replies(workers: Sequence[Worker], number: int, deadline: Deadline) -> dict[int, Packet]:
    """Each worker's reply to request `number`, by rank.

    Raises RankError for a worker that is gone, late, failed or out of step.
    """
    waiting, found = list(workers), {}
    while waiting:
        answering = ready(waiting, deadline.at - time.monotonic())
        if not answering:
            raise late(waiting, deadline)
        for worker in answering:
            waiting.remove(worker)
            message = found[worker.rank] = worker.receive(deadline)
            if message.head["number"] != number:
                raise RankError(f"{worker} answered another request ({deadline.doing})")
            if crash := message.head.get("crash"):
                raise RankError(f"{worker} failed ({deadline.doing}):\n{crash}")
    return found


def late(workers: Sequence[Worker], deadline: Deadline) -> RankError:
    who = " and ".join(map(str, workers))
    return RankError(
        f"{who} did not answer within {deadline.limit_s:g} s: {deadline.doing} ({deadline.setting} "
        "gives more time)"
    )


def _keep_last(output: IO[bytes], lines: deque[str]) -> None:
    for line in output:
        lines.append(line.decode(errors="replace").rstrip())


def _path() -> str:
    """What this process imports from, so that a worker runs the same code."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)


# In the worker


def run_worker(work: Callable[[Channel], None]) -> NoReturn:
    """Runs `work` until it returns, or raises Closed: the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's: it ends its workers itself
    code = 0
    try:
        work(Channel(socket.socket(fileno=int(sys.argv[1]))))
    except Closed:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # interpreter exit after gloo aborts now and then


def end_with_driver(channel: Channel, clean_up: Callable[[], None]) -> None:
    """From now on this process ends as soon as its driver does, whatever it is doing."""
    given = channel.fileno(), os.getppid(), clean_up
    threading.Thread(target=_watch, args=given, daemon=True).start()


def warm_up(device: torch.device) -> None:
    """A GPU's kernels are compiled when they are first called, which no request should wait for."""
    one, cu = torch.ones(1, 8, device=device), torch.tensor([0, 1], device=device)
    document_scores(one, cu, one, cu, cu[:1], cu)
    chunk_scores(one, cu, one, cu[:1], cu)


def _watch(channel: int, driver: int, clean_up: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    while not poll.poll(_WATCH_S * 1000) and os.getppid() == driver:
        pass
    clean_up()
    os._exit(0)


# Errors, told by a worker and raised in the driver

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), GenerationGoneError, DataError, OSError)
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def told_error(error: Exception) -> dict[str, str]:
    """An error of one of the kinds that a user can meet, as JSON."""
    kind = OSError if isinstance(error, OSError) else type(error)
    return {"type": kind.__name__, "message": str(error)}


def raised_error(told: Mapping[str, str], whose: str = "") -> Exception:
    """The error that a worker told of; whose: stands before its message."""
    return _ERRORS.get(told["type"], MSAError)(f"{whose}{told['message']}")
