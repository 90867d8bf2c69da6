"""Several processes of one machine that encode blocks for one writer.

The writer's process reads the corpus and gives a block to each rank that has none; a rank answers
with a sealed segment. Ranks hold the writer's lock as well: should its process die, no other writer
can start before the last rank has noticed, which it does when it next reports a batch.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch

from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from msa_train.errors import MSAError, RankError
from msa_train.hardware import threads_each
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import BlockEncoder, OnBatch
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import SegmentEntry
from msa_train.memory.bank.segment import Target
from msa_train.memory.ranks.channel import Channel, Closed
from msa_train.memory.ranks.worker_process import (
    Deadline,
    Worker,
    raised_error,
    ready,
    replies,
    run_worker,
    told_error,
    warm_up,
)

MODULE = "msa_train.memory.ranks.encoding"
TIMEOUT = 600.0  # seconds without a word from a rank that has work
START_S = 300.0  # for an interpreter to start and load a model, at least
SETTING = "--rank-timeout"
_LOOK_S = 1.0  # how often ranks are looked after
_KNOWN = (MSAError, DataError, OSError)  # of the corpus, the model or the disk: raised as they are


@dataclass(frozen=True)
class EncodingRanks:
    """`count` processes. load(rank) is pickled and gives each of them its encoder.

    Raises RankError naming a rank that dies, fails, or says nothing for `timeout` seconds.
    """

    count: int
    load: Callable[[int], BlockEncoder]
    timeout: float = TIMEOUT

    def segments(
        self, blocks: Iterable[list[Document]], target: Target, lock: WriterLock, encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        """As msa_train.memory.bank.encode.Encoding."""
        workers: list[_Encoder] = []
        try:
            for rank in range(self.count):
                workers.append(_Encoder(rank, MODULE, threads_each(self.count), [lock.descriptor]))
            self._start(workers, target)
            yield from self._encode(workers, iter(blocks), encoded)
        finally:
            for worker in workers:  # what is sealed is on the disk
                worker.kill()

    def _start(self, workers: list[_Encoder], target: Target) -> None:
        deadline = Deadline.of("starting to encode", max(START_S, self.timeout), SETTING)
        given = torch.frombuffer(bytearray(pickle.dumps((self.load, target))), dtype=torch.uint8)
        for worker in workers:
            worker.send({"rank": worker.rank}, {"given": given}, deadline)
        for reply in replies(workers, 0, deadline).values():
            if error := reply.head.get("error"):
                raise raised_error(error)

    def _encode(
        self, workers: list[_Encoder], blocks: Iterator[list[Document]], encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        more = True
        while True:
            for worker in workers:
                if more and worker.block is None:
                    block = next(blocks, None)
                    more = block is not None
                    if block is not None:
                        worker.give(block, self.timeout)
            if all(worker.block is None for worker in workers):
                return
            for worker in ready(workers, _LOOK_S):
                yield from worker.take(encoded, self.timeout)
            for worker in workers:
                worker.check()


class _Encoder(Worker):
    """A rank that encodes. block: what it has now."""

    block: list[Document] | None = None
    _silent_until: Deadline

    def __str__(self) -> str:
        return f"{super().__str__()} of the encoding"

    def give(self, block: list[Document], timeout: float) -> None:
        self.block, self._silent_until = block, Deadline.of("encoding", timeout, SETTING)
        self.send({"documents": [vars(document) for document in block]}, {}, self._silent_until)

    def take(self, encoded: OnBatch, timeout: float) -> Iterator[SegmentEntry]:
        """What it says next: a batch is done, a segment is, or what went wrong, which is raised."""
        self._silent_until = Deadline.of("encoding", timeout, SETTING)
        head = self.receive(self._silent_until).head
        if "encoded" in head:
            encoded(*head["encoded"])
        elif "sealed" in head:
            self.block = None
            yield SegmentEntry.from_json(head["sealed"])
        elif "error" in head:
            raise raised_error(head["error"])
        else:
            raise RankError(f"{self} failed: {head['crash']}")

    def check(self) -> None:
        """Raises RankError for a rank that has work and has said nothing for too long."""
        if self.block is not None and time.monotonic() > self._silent_until.at:
            raise self.late(self._silent_until)

    def gone(self, deadline: Deadline) -> RankError:
        code = self.exit_code()
        why = ", out of memory?" if code == -9 else ""
        return RankError(f"{self} died (exit code {code}{why}){self.last_lines()}")

    def late(self, deadline: Deadline) -> RankError:
        if self.block is None:
            return super().late(deadline)
        return RankError(
            f"{self} has said nothing for {deadline.limit_s:,.0f} seconds; it had documents "
            f"{self.block[0].number} to {self.block[-1].number}"
        )


# In the worker


def _work(channel: Channel) -> None:
    """Encodes the blocks that come. A failure is told, and is the end."""

    def tell(**head: object) -> None:
        channel.send({"number": 0, **head}, {}, None)

    told, given = channel.receive(None)
    try:
        load, target = pickle.loads(given["given"].numpy())
        encoder = load(told["rank"])
        warm_up(torch.device("cpu"))
        tell()
        while True:
            block = [StoredDocument(**each) for each in channel.receive(None).head["documents"]]
            entry = encoder.segment(block, target, lambda *batch: tell(encoded=batch))
            tell(sealed=asdict(entry))
    except Closed:
        raise
    except _KNOWN as error:
        tell(error=told_error(error))
    except BaseException as error:
        tell(crash=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    run_worker(_work)
