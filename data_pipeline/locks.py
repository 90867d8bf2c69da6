"""One process at a time. The kernel frees the lock of a process that dies: none is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path


class HeldError(Exception):
    """Another process holds the lock; the message describes it."""


class FileLock:
    """Holds the lock of a file, which names its holder. Raises HeldError, or OSError.

    dead: the holder that died while it held the lock, if one did. A process that inherits
    `descriptor` holds the lock too, until both have ended.
    """

    def __init__(self, path: Path, operation: str):
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.dead = self._take(operation)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _take(self, operation: str) -> str | None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(_described(os.pread(self.descriptor, 4096, 0))) from None
        left = os.pread(self.descriptor, 4096, 0)
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "operation": operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)
        return _described(left) if left else None

    def release(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, 0)  # empty: the holder did not die
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
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
