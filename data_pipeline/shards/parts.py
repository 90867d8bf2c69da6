"""Shards built in parts, by any number of machines that share a folder.

Part K of N builds every N-th shard, in the same hidden folder that a whole build uses. So what died
is started again and keeps what it had, and a whole build afterwards finds all of it there.
"""

from __future__ import annotations

import fcntl
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.locks import FileLock, HeldError

NOTES = "part-*-of-*"
_LOCKS, _HOST = f"{NOTES}.lock", ".host"  # the second keeps where a part was begun
PREPARING_S = 24 * 3600.0  # for one part to prepare what all of them read
PREPARING = "preparing.lock"


@dataclass(frozen=True)
class BuildPart:
    """Part `number` (from 1) of `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> BuildPart:
        """Of "3/16". Raises DataError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found and 1 <= int(found[1]) <= int(found[2]):
            return cls(int(found[1]), int(found[2]))
        raise DataError(f"--part is {text}: give K/N, as in 3/16 (K from 1 to N)")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def shards(self, total: int) -> range:
        return range(self.number - 1, total, self.count)

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """While this process builds the part. Raises DataError where another one does, or builds
        in another number of parts."""
        for path, other in _parts(folder):
            if other.count != self.count:
                _check_free(path, f"part {other}, which is not one of {self.count},")
        path = folder / f"part-{self.number}-of-{self.count}.lock"
        try:
            lock = FileLock(path, f"part {self}")
        except HeldError as error:
            raise DataError(f"part {self} of {folder} is being built by {error}") from None
        with lock:
            files.replace_file(path.with_suffix(_HOST), socket.gethostname())
            yield


@contextmanager
def preparing(folder: Path, pause_s: float = 1.0) -> Iterator[None]:
    """One part at a time; others wait for it, PREPARING_S at most."""
    end, told = time.monotonic() + PREPARING_S, False
    while True:
        try:
            lock = FileLock(folder / PREPARING, "preparing what all parts read")
            break
        except HeldError as error:
            if time.monotonic() > end:
                raise DataError(f"waited {PREPARING_S:.0f} s for {error} in {folder}") from None
            if not told:
                print(f"waiting for {error}", file=sys.stderr, flush=True)
            told = True
        time.sleep(pause_s)
    with lock:
        yield


def check_nobody_builds(folder: Path) -> None:
    """Raises DataError, naming process and machine."""
    for path, part in _parts(folder):
        _check_free(path, f"part {part}")


def missing(folder: Path, shards: Iterable[int]) -> str:
    """Which parts these shards are missing of, and where those were begun, in words."""
    parts = dict((str(part), path) for path, part in _parts(folder))
    shards, counts = list(shards), {part.count for _, part in _parts(folder)}
    if len(counts) != 1:
        return f"{len(shards)} shards are not built: {', '.join(map(str, shards[:5]))}, ..."
    count = counts.pop()
    said = []
    for number in sorted({shard % count + 1 for shard in shards}):
        part = BuildPart(number, count)
        own = sum(shard % count == number - 1 for shard in shards)
        said.append(f"part {part} ({own} shards, {_begun(parts.get(str(part)))})")
    return f"{', '.join(said)} of {count} not built"


def _begun(lock: Path | None) -> str:
    return f"begun on {_host(lock)}" if lock else "never begun"


def _host(lock: Path) -> str:
    try:
        return lock.with_suffix(_HOST).read_text()
    except FileNotFoundError:
        return "another machine"


def _parts(folder: Path) -> list[tuple[Path, BuildPart]]:
    named = ((path, re.findall(r"\d+", path.stem)) for path in sorted(folder.glob(_LOCKS)))
    return [(path, BuildPart(*map(int, numbers))) for path, numbers in named]


def _check_free(path: Path, what: str) -> None:
    with open(path, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{what} is being built on {_host(path)}: wait for it, or stop it"
            ) from None
