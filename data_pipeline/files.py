"""Changes of files and folders that survive a crash.

Every write, sync, rename and removal of a memory bank goes through here, so that a test can make
each of them fail.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


class NewFile:
    """A file that did not exist, written from its start; its SHA-256 is taken on the way.

    Closed, it is on the disk; its name is, once its folder is synced.
    """

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """All of a bytes-like object."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._descriptor, view[done:])
        self._sha256.update(view)
        self.bytes += done
        return done

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def replace_file(path: Path, data: bytes) -> None:
    """The file holds `data`, or what it held before: at no moment anything else."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)  # of a process that died here
    with NewFile(aside) as file:
        file.write(data)
    rename(aside, path)


def rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_folder(target.parent)


def make_folder(path: Path) -> None:
    os.mkdir(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Names in a folder are on the disk after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; a link, not what it leads to."""
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        remove(entry)
    os.rmdir(path)
