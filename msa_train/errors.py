"""The exceptions a user can meet. Each says which setting or file, what value, and what to do.

Every class carries the exit code of the command line, so that scripts can tell them apart
(data_pipeline.errors.DataError, for corpora and shards, has 3).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_THE_WAY = "something else has that name: move it, or give another path"
_NOT_ALLOWED = "give a path that may be written, or change its rights"
_ADVICE = {
    errno.ENOSPC: "make room on that disk, or write elsewhere",
    errno.EDQUOT: "make room on that disk, or write elsewhere",
    errno.EROFS: _NOT_ALLOWED,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: "a file is where a folder must be: move it, or give another path",
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ENAMETOOLONG: "give a shorter name",
}


class MSAError(ValueError):
    """Base of every error a user can cause or repair.

    on_all_ranks: every rank of a run meets it, so that one of them says it.
    """

    exit_code = 1
    on_all_ranks = False


class ConfigError(MSAError):
    """A setting is unknown, of the wrong type, or impossible together with another."""

    exit_code = 2


class ContextError(ConfigError):
    """A conversation is longer than a context."""


class CheckpointError(MSAError):
    """A checkpoint or export is missing, incomplete or of another model."""

    exit_code = 4


class BankError(MSAError):
    """A memory bank is missing, incomplete or built by other weights."""

    exit_code = 5


class ConformanceError(MSAError):
    """A conformance case does not match."""

    exit_code = 6


class MissingDependencyError(MSAError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 7


class RankError(MSAError):
    """Another process is missing or late; the message names it."""

    exit_code = 8


class FileError(MSAError):
    """The operating system refuses to read or write a file or folder."""

    exit_code = 11

    @classmethod
    def of(cls, error: OSError) -> FileError:
        """The file, what the system says of it, and what to do."""
        path = error.filename2 or error.filename
        said = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0)
        return cls(f"{f'{path}: ' if path else ''}{said}{f'; {advice}' if advice else ''}")


@contextmanager
def failed_writes(path: Path) -> Iterator[None]:
    """Raises FileError for a file that torch or safetensors could not write, as on a full disk.

    Both report that by errors of their own, which are known by their words.
    """
    try:
        yield
    except Exception as error:
        said = str(error)
        if number := re.search(r"os error (\d+)", said):
            code = int(number[1])
            raise FileError.of(OSError(code, os.strerror(code), str(path))) from error
        if re.search(r"inline_container|iostream error|PytorchStreamWriter", said):
            raise FileError(
                f"{path}: a file in it could not be written ({said.splitlines()[0]}); "
                f"{_ADVICE[errno.ENOSPC]}"
            ) from error
        raise


class DivergedError(MSAError):
    """Training met losses that spike, or what is not finite, more often than it may."""

    exit_code = 10


class NoDeviceError(MSAError):
    """There is no GPU where one is needed; the message says what runs without."""

    exit_code = 12


class FullMemoryError(MSAError):
    """A rank's memory is full; the message says what it was planned to hold, and what it holds."""

    exit_code = 13


class StuckError(MSAError):
    """Ranks made no progress and were ended; the message names the one that held up the others."""

    exit_code = 14
