"""One writer at a time. The kernel frees the lock of a process that dies: none is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from msa_train.errors import BankError

LOCK = "writer.lock"


class BusyError(BankError):
    """Another writer is at work."""


class WriterLock:
    """Holds BANK/writer.lock, which names its writer. Raises BusyError where another one holds it.

    dead: the writer that died while it held the lock, if one did. A process that inherits
    `descriptor` holds the lock too, until both have ended.
    """

    def __init__(self, bank: Path, operation: str):
        self.path = bank / LOCK
        try:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BankError(f"{self.path} cannot be written: {error}") from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _described(os.pread(self.descriptor, 4096, 0))
            os.close(self.descriptor)
            raise BusyError(
                f"{bank} is being written by {holder}: wait until it has finished"
            ) from None
        left = os.pread(self.descriptor, 4096, 0)
        self.dead = _described(left) if left else None
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "operation": operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            os.close(self.descriptor)
            raise BankError(f"{self.path} cannot be written: {error}") from error

    def release(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, 0)  # empty: the writer did not die
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_) -> None:
        self.release()


def _described(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return (
            f"process {holder['process']} on {holder['host']} ({holder['operation']}, since "
            f"{holder['since']})"
        )
    except (ValueError, KeyError, TypeError):
        return "another process"
