"""One run at a time in an output: two would mix their checkpoints and metrics."""

from __future__ import annotations

import errno
from pathlib import Path

from data_pipeline.locks import FileLock, HeldError
from msa_train.errors import ConfigError, RankError
from msa_train.parallel.groups import of_rank_0
from msa_train.training.saying import say

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some file systems of clusters


class BusyOutputError(RankError):
    """Another run is at work in the output."""


class OutputLock:
    """OUTPUT/run.lock, held by rank 0 while it lives; every rank must make one.

    Raises BusyOutputError, naming the process that trains there. One that died holds nothing.
    """

    def __init__(self, output: Path):
        self._output = output
        self._lock: FileLock | None = None
        of_rank_0(self._take)

    def _take(self) -> None:
        path = self._output / LOCK
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path, "train")
        except HeldError as error:
            raise BusyOutputError(
                f"{self._output} is being trained in by {error}: wait until it has ended, stop it "
                "(kill -TERM), or set another output"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"{path} cannot be locked here ({error}): see that no second run uses it")
                return
            raise ConfigError(f"{path} cannot be written ({error}): set another output") from error
        if self._lock.dead is not None:
            say(f"{self._output}: {self._lock.dead} died in it; this run takes over")

    def release(self) -> None:
        """After everything else that writes to the output."""
        if self._lock is not None:
            self._lock.release()
