"""Several processes of one machine that encode blocks for one writer.

The writer's process reads the corpus and gives a block to each rank that has none; a rank answers
with a sealed segment. Ranks hold the writer's lock as well: should its process die, no other writer
can start before the last rank has noticed, which it does when it next reports a batch.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch

from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from msa_train.errors import MSAError, RankError
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import BlockEncoder, OnBatch
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import SegmentEntry
from msa_train.memory.bank.segment import Target
from msa_train.memory.ranks.channel import Channel, Closed, Late
from msa_train.memory.ranks.worker_process import (
    Deadline,
    Worker,
    raised_error,
    ready,
    replies,
    run_worker,
    threads_each,
    told_error,
)

MODULE = "msa_train.memory.ranks.encoding"
TIMEOUT = 600.0  # seconds without a word from a rank that has work
START_S = 300.0  # for an interpreter to start and load a model, at least
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
        workers: list[Worker] = []
        try:
            for rank in range(self.count):
                threads = threads_each(self.count)
                workers.append(Worker(rank, MODULE, threads, keep=[lock.descriptor]))
            self._start(workers, target)
            yield from self._encode([_Rank(worker) for worker in workers], iter(blocks), encoded)
        finally:
            for worker in workers:  # what is sealed is on the disk
                worker.kill()

    def _start(self, workers: list[Worker], target: Target) -> None:
        deadline = Deadline.of("starting to encode", max(START_S, self.timeout))
        given = torch.frombuffer(bytearray(pickle.dumps((self.load, target))), dtype=torch.uint8)
        for worker in workers:
            worker.send({"rank": worker.rank}, {"given": given}, deadline)
        for reply in replies(workers, 0, deadline).values():
            if error := reply.head.get("error"):
                raise raised_error(error)

    def _encode(
        self, ranks: list[_Rank], blocks: Iterator[list[Document]], encoded: OnBatch
    ) -> Generator[SegmentEntry, None, None]:
        by_worker = {rank.worker: rank for rank in ranks}
        more = True
        while True:
            for rank in ranks:
                if more and rank.block is None:
                    block = next(blocks, None)
                    more = block is not None
                    if block is not None:
                        rank.give(block, self.timeout)
            if all(rank.block is None for rank in ranks):
                return
            for worker in ready(list(by_worker), _LOOK_S):
                yield from by_worker[worker].take(encoded, self.timeout)
            for rank in ranks:
                rank.check(self.timeout)


class _Rank:
    """A rank at work. block: what it encodes now."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.block: list[Document] | None = None
        self._heard = time.monotonic()

    def __str__(self) -> str:
        return f"{self.worker} of the encoding"

    def give(self, block: list[Document], timeout: float) -> None:
        self.block, self._heard = block, time.monotonic()
        try:
            documents = [vars(document) for document in block]
            self.worker.channel.send({"documents": documents}, {}, self._heard + timeout)
        except Closed:
            raise self._died() from None
        except Late:
            raise self._silent(timeout) from None

    def take(self, encoded: OnBatch, timeout: float) -> Iterator[SegmentEntry]:
        """What it says next: a batch is done, a segment is, or what went wrong, which is raised."""
        try:
            head = self.worker.channel.receive(time.monotonic() + timeout).head
        except Closed:
            raise self._died() from None
        except Late:
            raise self._silent(timeout) from None
        self._heard = time.monotonic()
        if "encoded" in head:
            encoded(*head["encoded"])
        elif "sealed" in head:
            self.block = None
            yield SegmentEntry.from_json(head["sealed"])
        elif "error" in head:
            raise raised_error(head["error"])
        else:
            raise RankError(f"{self} failed: {head['crash']}")

    def check(self, timeout: float) -> None:
        """Raises RankError for a rank that has work and has said nothing for too long."""
        if self.block is not None and time.monotonic() - self._heard > timeout:
            raise self._silent(timeout)

    def _died(self) -> RankError:
        code = self.worker.exit_code()
        why = ", out of memory?" if code == -9 else ""
        return RankError(f"{self} died (exit code {code}{why}){self.worker.last_lines()}")

    def _silent(self, timeout: float) -> RankError:
        documents = f"documents {self.block[0].number} to {self.block[-1].number}"
        return RankError(f"{self} has said nothing for {timeout:,.0f} seconds; it had {documents}")


# In the worker


def _work(channel: Channel) -> None:
    """Encodes the blocks that come. A failure is told, and is the end."""
    told, given = channel.receive(None)
    try:
        load, target = pickle.loads(given["given"].numpy())
        encoder = load(told["rank"])
    except _KNOWN as error:
        return channel.send({"number": 0, "error": told_error(error)}, {}, None)
    except BaseException:
        return channel.send({"number": 0, "crash": traceback.format_exc()}, {}, None)
    channel.send({"number": 0}, {}, None)
    try:
        while True:
            documents = channel.receive(None).head["documents"]
            entry = encoder.segment(
                [StoredDocument(**each) for each in documents],
                target,
                lambda *batch: channel.send({"encoded": batch}, {}, None),
            )
            channel.send({"sealed": asdict(entry)}, {}, None)
    except _KNOWN as error:
        channel.send({"error": told_error(error)}, {}, None)
    except Closed:
        raise
    except BaseException as error:
        channel.send({"crash": f"{type(error).__name__}: {error}"}, {}, None)


if __name__ == "__main__":
    run_worker(_work)
