"""Search workers and the exchange of tensors with them: good until the first failure."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from msa_train.errors import MSAError, RankError
from msa_train.hardware import threads_each
from msa_train.memory.ranks.exchange import Exchange, ExchangeError, Wait
from msa_train.memory.ranks.worker_process import (
    Deadline,
    Worker,
    raised_error,
    replies,
)

T = TypeVar("T")

MODULE = "msa_train.memory.ranks.search_worker"
# The settings that give more time, for errors.
TIMEOUT = "timeout_s, --rank-timeout-s of msa serve,"
START = "start_timeout_s, --rank-start-timeout-s of msa serve,"
_MOMENT_S = 0.2  # in which a worker ends whose tensor did not come


@dataclass(frozen=True)
class Call:
    """One request. tensors: rank -> those that go with it (on the CPU), a key for each rank that is
    asked. query: goes to all of these. doing: for errors. returns: rank -> bytes that follow its
    answer through the exchange.
    """

    head: dict[str, Any]
    doing: str
    tensors: Mapping[int, Mapping[str, Tensor]]
    query: Tensor | None = None
    returns: Mapping[int, int] = field(default_factory=dict)


class WorkerAnswer(NamedTuple):
    head: dict[str, Any]
    tensors: dict[str, Tensor]
    data: Tensor | None  # [bytes] uint8, on the device


class WorkerGroup:
    """Workers 1..count-1 beside this process, rank 0. After a RankError only `close` is allowed."""

    def __init__(
        self,
        count: int,
        device: torch.device,
        settings: dict[str, Any],
        timeout_s: float,
        start_timeout_s: float,
    ):
        self._timeout_s, self._threads = timeout_s, threads_each(count)
        self._numbers = itertools.count(1)
        self._folder = Path(tempfile.mkdtemp(prefix="msa-ranks-"))
        self._exchange: Exchange | None = None
        self.workers: dict[int, Worker] = {}
        try:
            for rank in range(1, count):
                self.workers[rank] = Worker(rank, MODULE, self._threads)
            self._meet(count, device, settings | {"threads": self._threads}, start_timeout_s)
        except BaseException:
            self.close()
            raise

    def ask(
        self, call: Call, own: Callable[[], T], timeout_s: float | None = None
    ) -> tuple[T, dict[int, WorkerAnswer]]:
        """`own()` here while the workers do their part; their answers by rank. timeout_s: of what
        belongs to their start (None: of a request).

        Raises RankError for a worker that died, failed or is late, within the timeout; any other
        MSAError that a rank met, as it met it, and the group is as good as before.
        """
        limit = (self._timeout_s, TIMEOUT) if timeout_s is None else (timeout_s, START)
        deadline = Deadline.of(call.doing, *limit)
        number = next(self._numbers)
        workers = [self.workers[rank] for rank in call.tensors]
        sent = [self._send(worker, number, call, deadline) for worker in workers]
        mine, failure = None, None
        try:
            with _fewer_threads(self._threads):
                mine = own()
        except MSAError as error:  # the answers must be taken, or they would be the next one's
            failure = error
        answers = self._answers(workers, number, call, deadline, sent)
        if failure is not None:
            raise failure
        for worker in workers:
            if error := answers[worker.rank].head.get("error"):
                raise raised_error(error, f"{worker}: ")
        return mine, answers

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        for worker in self.workers.values():
            worker.kill()
        if self._exchange is not None:
            self._exchange.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _meet(
        self, count: int, device: torch.device, settings: dict[str, Any], limit_s: float
    ) -> None:
        """Two steps, because a worker that cannot start is named at once in the first."""
        workers = list(self.workers.values())
        starting, connecting = (
            Deadline.of(step, limit_s, START) for step in ("starting", "connecting")
        )
        file = self._folder / "meeting"
        common = {
            **settings,
            "count": count,
            "device": device.type,
            "file": str(file),
            "timeout_s": self._timeout_s,
        }
        for worker in workers:
            worker.send({**common, "rank": worker.rank}, {}, starting)
        if not workers:
            return
        replies(workers, 0, starting)
        for worker in workers:
            worker.send({}, {}, connecting)
        try:
            self._exchange = Exchange(file, 0, count, device, self._timeout_s)
        except RuntimeError as error:
            # A worker that failed meanwhile is named with its reason.
            replies(workers, 0, replace(connecting, limit_s=self._timeout_s, at=0.0))
            raise RankError(f"rank 0 could not connect to the others: {error}") from error
        replies(workers, 0, connecting)

    def _send(self, worker: Worker, number: int, call: Call, deadline: Deadline) -> Wait | None:
        head = {**call.head, "number": number}
        if call.query is not None:
            head["query"] = [str(call.query.dtype)[6:], list(call.query.shape)]
        worker.send(head, call.tensors[worker.rank], deadline)
        if call.query is None:
            return None
        with _named(worker, call.doing):
            return self._exchange.send(call.query, worker.rank)

    def _answers(
        self,
        workers: Sequence[Worker],
        number: int,
        call: Call,
        deadline: Deadline,
        sent: Sequence[Wait | None],
    ) -> dict[int, WorkerAnswer]:
        found, answers = replies(workers, number, deadline), {}
        for worker, wait in zip(workers, sent, strict=True):
            reply, data = found[worker.rank], None
            size = 0 if "error" in reply.head else call.returns.get(worker.rank, 0)
            with _named(worker, call.doing):
                if wait is not None:
                    wait(deadline.at)
                if size:
                    data = self._exchange.receive(size, worker.rank, deadline.at)
            answers[worker.rank] = WorkerAnswer(*reply, data)
        return answers


@contextlib.contextmanager
def _fewer_threads(count: int) -> Iterator[None]:
    """This process computes on its part of the cores while the workers do on theirs."""
    before = torch.get_num_threads()
    if before <= count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _named(worker: Worker, doing: str) -> Iterator[None]:
    """An exchange that fails is the failure of this worker."""
    try:
        yield
    except ExchangeError as error:
        ended = worker.exit_code(_MOMENT_S) is not None
        how = worker.fate() if ended else f"did not finish in time ({error})"
        raise RankError(f"{worker} {how} ({doing})") from error
