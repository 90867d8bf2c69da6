"""Running workers and the exchange with them: good until the first failure."""

from __future__ import annotations

import contextlib
import itertools
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from msa_train.errors import MSAError, RankError
from msa_train.memory.ranks.channel import Channel, Closed, Late, Packet
from msa_train.memory.ranks.exchange import Exchange, ExchangeError, Wait
from msa_train.memory.ranks.processes import Worker, threads_each
from msa_train.memory.ranks.snapshot import named_error

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request. asked: rank -> tensors that go with it (CPU); query: goes to all of these.

    doing: for errors. returns: rank -> bytes that follow its answer through the exchange.
    """

    head: dict[str, Any]
    doing: str
    asked: Mapping[int, Mapping[str, Tensor]]
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
                self.workers[rank] = Worker(rank, self._threads)
            self._meet(count, device, settings | {"threads": self._threads}, start_timeout_s)
        except BaseException:
            self.close()
            raise

    def ask(
        self, call: Call, own: Callable[[], T], timeout_s: float | None = None
    ) -> tuple[T, dict[int, WorkerAnswer]]:
        """`own()` here while the workers do their part; their answers by rank.

        Raises RankError for a worker that died, failed or is late, within the timeout; any other
        MSAError that a rank met, as it met it, and the group is as good as before.
        """
        limit = timeout_s or self._timeout_s
        deadline, number = time.monotonic() + limit, next(self._numbers)
        asked = [self.workers[rank] for rank in call.asked]
        sent = [self._send(worker, number, call, deadline, limit) for worker in asked]
        mine, failure = None, None
        try:
            with _fewer_threads(self._threads):
                mine = own()
        except MSAError as error:  # the answers must be taken, or they would be the next one's
            failure = error
        answers = self._answers(asked, number, call, deadline, limit, sent)
        if failure is not None:
            raise failure
        for worker in asked:
            if error := answers[worker.rank].head.get("error"):
                raise named_error(error["type"], f"{worker}: {error['message']}")
        return mine, answers

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        for worker in self.workers.values():
            worker.kill()
        if self._exchange is not None:
            self._exchange.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _meet(
        self, count: int, device: torch.device, settings: dict[str, Any], limit: float
    ) -> None:
        """Two steps, because a worker that cannot start is named at once in the first."""
        deadline, workers = time.monotonic() + limit, list(self.workers.values())
        file = self._folder / "meeting"
        common = {
            **settings,
            "count": count,
            "device": device.type,
            "file": str(file),
            "timeout_s": self._timeout_s,
        }
        for worker in workers:
            call = Call({**common, "rank": worker.rank}, "starting", {worker.rank: {}})
            self._send(worker, 0, call, deadline, limit)
        if not workers:
            return
        self._replies(workers, 0, "starting", deadline, limit)
        for worker in workers:
            self._send(worker, 0, Call({}, "connecting", {worker.rank: {}}), deadline, limit)
        try:
            self._exchange = Exchange(file, 0, count, device, self._timeout_s)
        except RuntimeError as error:
            self._replies(workers, 0, "connecting", time.monotonic(), self._timeout_s)
            raise RankError(f"rank 0 could not connect to the others: {error}") from error
        self._replies(workers, 0, "connecting", deadline, limit)

    def _send(
        self, worker: Worker, number: int, call: Call, deadline: float, limit: float
    ) -> Wait | None:
        head = {**call.head, "number": number}
        try:
            if call.query is None:
                worker.channel.send(head, call.asked[worker.rank], deadline)
                return None
            head["query"] = [str(call.query.dtype)[6:], list(call.query.shape)]
            worker.channel.send(head, call.asked[worker.rank], deadline)
            return self._exchange.send(call.query, worker.rank)
        except Closed:
            raise RankError(f"{worker} {worker.fate()} ({call.doing})") from None
        except Late:
            raise _late([worker], limit, call.doing) from None
        except ExchangeError as error:
            raise _unfinished(worker, call.doing, error) from error

    def _answers(
        self,
        asked: Sequence[Worker],
        number: int,
        call: Call,
        deadline: float,
        limit: float,
        sent: Sequence[Wait | None],
    ) -> dict[int, WorkerAnswer]:
        replies = self._replies(asked, number, call.doing, deadline, limit)
        answers = {}
        for worker, wait in zip(asked, sent, strict=True):
            reply, data = replies[worker.rank], None
            size = 0 if "error" in reply.head else call.returns.get(worker.rank, 0)
            try:
                if wait is not None:
                    wait(deadline)
                if size:
                    data = self._exchange.receive(size, worker.rank, deadline)
            except ExchangeError as error:
                raise _unfinished(worker, call.doing, error) from error
            answers[worker.rank] = WorkerAnswer(*reply, data)
        return answers

    def _replies(
        self, workers: Sequence[Worker], number: int, doing: str, deadline: float, limit: float
    ) -> dict[int, Packet]:
        waiting = {worker.channel.fileno(): worker for worker in workers}
        poll, found = select.poll(), {}
        for end in waiting:
            poll.register(end, select.POLLIN)
        while waiting:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise _late(list(waiting.values()), limit, doing)
            for end, _ in ready:
                worker = waiting.pop(end)
                poll.unregister(end)
                found[worker.rank] = _reply(worker, number, doing, deadline, limit)
        return found


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


def _reply(worker: Worker, number: int, doing: str, deadline: float, limit: float) -> Packet:
    channel: Channel = worker.channel
    try:
        message = channel.receive(deadline)
    except Closed:
        raise RankError(f"{worker} {worker.fate()} ({doing})") from None
    except Late:
        raise _late([worker], limit, doing) from None
    if message.head["number"] != number:
        raise RankError(f"{worker} answered another request ({doing})")
    if crash := message.head.get("crash"):
        raise RankError(f"{worker} failed ({doing}):\n{crash}")
    return message


def _late(workers: Sequence[Worker], limit: float, doing: str) -> RankError:
    who = " and ".join(map(str, workers))
    return RankError(f"{who} did not answer within {limit:g} s: {doing}")


def _unfinished(worker: Worker, doing: str, error: ExchangeError) -> RankError:
    how = worker.fate() if worker.ended() else f"did not finish in time ({error})"
    return RankError(f"{worker} {how} ({doing})")
