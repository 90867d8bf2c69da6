"""One owner at a time among machines that share a folder; a dead one holds nothing up.

FOLDER/.NAME.lease-000003    the third owner of NAME: who it is, and a count that it raises

A file lock tells at once of an owner on this machine. Of others it may not: some file systems keep
locks to each machine, some keep that of a machine without power for ever. So those are judged by
their count. One that stands still for LEASE_S, by the clock of whoever looks, is dead: no two
clocks are compared. Whoever takes over makes the file of the next number, which only one can; an
owner that was taken for dead finds that file, and ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.locks import HeldError

LEASES = ".*.lease-*"
BEAT_S, LEASE_S = 5.0, 60.0
_LOOK_S = 0.5
_BYTES = 1024  # every count overwrites the one before


class Lease:
    """Held from its making to `release`. Raises HeldError, naming the holder, or OSError.

    dead: the owner it was taken over from, if that did not release it.
    """

    def __init__(self, folder: Path, name: str, operation: str):
        self.dead: str | None = None
        before = _look(folder, name)  # the one that is followed, if it is dead: no later one
        if found := living(folder, [name]):
            raise HeldError(found.said)
        if before and not before.released:
            self.dead = before.said
        number = before.number + 1 if before else 1
        self._place, self._number = (folder, name), number
        self._path = _path(folder, name, number)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise HeldError(_who(folder, name)) from None
        if _last(folder, name) > number:  # which has removed the files of those before it
            os.close(self._file)
            self._path.unlink(missing_ok=True)
            raise HeldError(_who(folder, name))
        self._text = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "machine": machine() if _locked(self._file) else None,
            "operation": operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._count, self._released = 0, threading.Event()
        self._write()
        for path in folder.glob(f".{name}.lease-*"):
            if path < self._path:
                with suppress(FileNotFoundError):
                    path.unlink()
        self._thread = threading.Thread(target=self._beat, name=f"lease {name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises HeldError where another has taken over, which this process was dead for."""
        if _last(*self._place) != self._number:  # its file goes, too, when others take over
            raise HeldError(_who(*self._place))

    def release(self) -> None:
        if not self._released.is_set():
            self._released.set()
            self._thread.join()
            with suppress(OSError):
                self._write(released=True)
            os.close(self._file)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(OSError):  # for LEASE_S: then another takes over
                self._count += 1
                self._write()

    def _write(self, **more: Any) -> None:
        text = json.dumps(self._text | {"count": self._count} | more)
        os.pwrite(self._file, text.encode().ljust(_BYTES), 0)
        os.fsync(self._file)


@dataclass(frozen=True)
class Owner:
    """The last owner of a lease, as its file describes it. number: how many there were."""

    number: int
    text: bytes

    @property
    def said(self) -> str:
        return _said(self.text)

    @property
    def host(self) -> str:
        return _fields(self.text).get("host", "another machine")

    @property
    def released(self) -> bool:
        return bool(_fields(self.text).get("released"))


def living(folder: Path, names: Iterable[str]) -> Owner | None:
    """The owner of one of these leases that is alive; it may take LEASE_S to know that none is."""
    first: dict[str, Owner] = {}
    for name in names:
        owner = _look(folder, name)
        if owner is None or owner.released:
            continue
        here = _here(folder, name, owner)
        if here:
            return owner
        if here is None:
            first[name] = owner
    begin, told = time.monotonic(), False
    while first and (waited := time.monotonic() - begin) < LEASE_S:
        if waited > 2 * BEAT_S and not told:
            said = "; ".join(owner.said for owner in first.values())
            print(f"waiting {LEASE_S:.0f} s for a sign of life of {said}", file=sys.stderr)
            told = True
        time.sleep(min(_LOOK_S, BEAT_S / 4))
        for name, before in [*first.items()]:
            now = _look(folder, name)
            if now is None or now.released:
                del first[name]
            elif now != before:
                return now
    return None


def owners(folder: Path) -> dict[str, Owner]:
    """The last owner of every lease of a folder, by its name."""
    names = {path.name[1:].rpartition(".lease-")[0] for path in folder.glob(LEASES)}
    found = {name: _look(folder, name) for name in sorted(names)}
    return {name: owner for name, owner in found.items() if owner is not None}


def machine() -> str:
    """What shares file locks with this process."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot}"
    return socket.gethostname()


def _here(folder: Path, name: str, owner: Owner) -> bool | None:
    """Whether an owner on this machine is alive; None: it is on another, or has just begun."""
    if _fields(owner.text).get("machine") != machine():
        return None
    try:
        file = os.open(_path(folder, name, owner.number), os.O_RDWR)
    except FileNotFoundError:  # somebody is taking over
        return None
    try:
        return not _locked(file)
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    """Whether this process has the lock now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or no locks on this file system
        return False
    return True


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f".{name}.lease-{number:06d}"


def _last(folder: Path, name: str) -> int:
    """How many owners there were."""
    return max((int(path.name[-6:]) for path in folder.glob(f".{name}.lease-*")), default=0)


def _look(folder: Path, name: str) -> Owner | None:
    """The last owner; one that has just made its file is given a moment to describe itself."""
    end = time.monotonic() + _LOOK_S
    while number := _last(folder, name):
        owner = Owner(number, _read(_path(folder, name, number)))
        if owner.text or time.monotonic() > end:
            return owner
        time.sleep(_LOOK_S / 50)
    return None


def _who(folder: Path, name: str) -> str:
    owner = _look(folder, name)
    return owner.said if owner else "another process"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _fields(text: bytes) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:  # it has just begun
        return {}


def _said(text: bytes) -> str:
    found = _fields(text)
    if not found:
        return "another process"
    return (
        f"process {found['process']} on {found['host']} ({found['operation']}, since "
        f"{found['since']})"
    )
