"""Several processes of one machine that encode blocks for one writer.

The writer's process reads the corpus and hands a block to whoever has none; a rank answers with a
sealed segment. Ranks share the writer's lock: should its process die, no other writer can start
before the last rank has noticed, which it does when it next reports a batch.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from msa_train.errors import MSAError, RankError
from msa_train.memory.bank.encode import BlockEncoder, OnBatch
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import SegmentEntry
from msa_train.memory.bank.segment import Target

TIMEOUT = 600.0  # seconds without a word from a rank that has work
_ENDING = 10.0  # seconds for a rank to end by itself

# Ranks are forked from a process that has imported torch, once, and never used it.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["msa_train.memory.ranks.encoding"])


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
        ranks = [_Rank(rank, self.load, target, lock) for rank in range(self.count)]
        try:
            yield from self._all(ranks, iter(blocks), encoded)
            for rank in ranks:
                rank.end()
        finally:
            for rank in ranks:
                rank.kill()

    def _all(self, ranks: list[_Rank], blocks: Any, encoded: OnBatch):
        more = True
        while True:
            for rank in ranks:
                if more and rank.block is None:
                    block = next(blocks, None)
                    more = block is not None
                    if block is not None:
                        rank.give(block)
            busy = [rank for rank in ranks if rank.block is not None]
            if not busy:
                return
            ready = wait([rank.connection for rank in ranks], timeout=1.0)
            for rank in ranks:
                if rank.connection in ready:
                    yield from rank.said(encoded)
            for rank in busy:
                rank.check(self.timeout)


class _Rank:
    """One process, as the writer's process sees it."""

    def __init__(self, rank: int, load: Any, target: Target, lock: WriterLock):
        self._rank = rank
        self.connection, theirs = _CONTEXT.Pipe()
        held = _Held(lock.descriptor)
        work = rank, theirs, load, target, held
        self._process = _CONTEXT.Process(target=_work, args=work, daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed here
        self.block: list[Document] | None = None
        self._sending: threading.Thread | None = None
        self._heard = time.monotonic()

    def give(self, block: list[Document]) -> None:
        self.block, self._heard = block, time.monotonic()
        # A rank that reads nothing must not stop this process.
        self._sending = threading.Thread(target=_send, args=(self.connection, block), daemon=True)
        self._sending.start()

    def said(self, encoded: OnBatch) -> Generator[SegmentEntry, None, None]:
        """What it says next: a batch is done, a segment is, or what went wrong, which is raised."""
        try:
            kind, *message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(_ENDING)
            code = self._process.exitcode
            raise RankError(
                f"{self} died (exit code {code}{', out of memory?' if code == -9 else ''})"
            ) from None
        self._heard = time.monotonic()
        if kind == "encoded":
            encoded(*message)
        elif kind == "sealed":
            self.block = None
            yield message[0]
        elif isinstance(message[0], BaseException):
            raise message[0]
        else:
            raise RankError(f"{self} failed: {message[0]}")

    def check(self, timeout: float) -> None:
        if self.block is not None and time.monotonic() - self._heard > timeout:
            first, last = self.block[0].number, self.block[-1].number
            raise RankError(
                f"{self} has said nothing for {timeout:,.0f} seconds; it had documents "
                f"{first} to {last}"
            )

    def end(self) -> None:
        _send(self.connection, None)
        self._process.join(_ENDING)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(_ENDING)
        if self._sending is not None:
            self._sending.join(_ENDING)  # it fails now that nobody reads
        self.connection.close()

    def __str__(self) -> str:
        return f"rank {self._rank} (process {self._process.pid}) of the encoding"


class _Held:
    """A descriptor that the process it is sent to holds too."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def __reduce__(self):
        return _taken, (reduction.DupFd(self._descriptor),)


def _taken(descriptor: Any) -> int:
    return descriptor.detach()


def _send(connection: Connection, message: Any) -> None:
    with contextlib.suppress(OSError):  # a dead rank is noticed where it is listened to
        connection.send(message)


def _work(rank: int, connection: Connection, load: Any, target: Target, held: int) -> None:
    """What a rank does until it gets None, or the writer's process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the writer's process is told, and ends this one
    try:
        encoder = load(rank)
        while (block := connection.recv()) is not None:
            entry = encoder.segment(
                block, target, lambda *batch: connection.send(("encoded", *batch))
            )
            connection.send(("sealed", entry))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except (MSAError, DataError, OSError) as error:
        _send(connection, ("failed", error))
    except BaseException as error:
        _send(connection, ("failed", f"{type(error).__name__}: {error}"))
