"""Files and folders that a user keeps are there whole or not at all, whatever crashes.

Everything that writes one goes through here: `whole` for a file or folder that is written anew,
`replace_file` for one that is held in memory, and the single steps for a memory bank, shards and
checkpoints, which keep what is finished of them. So a test can make each step fail.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`, at which to write a file or make a folder.

    When the block ends, what is there goes to the disk and takes the name, in place of a file that
    had it; when the block fails, nothing of it stays. The suffix is the same, and two processes
    never share a path. Raises OSError, which names `path`, also where that is a folder that holds
    something.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        with naming(path, partial):
            yield partial
            sync_tree(partial)
            rename(partial, path)
    except BaseException:
        with suppress(OSError):
            remove(partial)
        raise


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """What the system refuses in the block names `path`, where it names no file, or `partial`.

    A full disk is reported by a write, which knows no name.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno is not None and (named is None or (partial and str(named) == str(partial))):
            error.filename = str(path)
        raise


def replace_file(path: Path, data: bytes | str) -> None:
    """The file holds `data` (text as UTF-8), or what it held before: at no moment anything else."""
    with whole(path) as partial, NewFile(partial) as file:
        file.write(data.encode() if isinstance(data, str) else data)


class NewFile:
    """A file that did not exist, written from its start; its SHA-256 is taken on the way.

    Once it is closed its bytes are on the disk; its name is, once its folder is synced.
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


def rename(source: Path, target: Path) -> None:
    """The new name is on the disk after this; what it names must be there already."""
    os.rename(source, target)
    sync(target.parent)


def make_folder(path: Path) -> None:
    os.mkdir(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """The bytes of a file, or the names in a folder, are on the disk after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """As `sync`, for a folder with all that is in it."""
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                sync_tree(entry)
    sync(path)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; a link, not what it leads to."""
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for entry in sorted(path.iterdir()):
        remove(entry)
    os.rmdir(path)
