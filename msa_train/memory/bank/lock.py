"""One writer of a bank at a time."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.locks import FileLock, HeldError
from msa_train.errors import BankError

LOCK = "writer.lock"


class BusyError(BankError):
    """Another writer is at work."""


class WriterLock(FileLock):
    """Holds BANK/writer.lock. Raises BusyError, naming the writer that holds it."""

    def __init__(self, bank: Path, operation: str):
        try:
            super().__init__(bank / LOCK, operation)
        except HeldError as error:
            raise BusyError(
                f"{bank} is being written by {error}: wait until it has finished"
            ) from None
        except OSError as error:
            raise BankError(f"{bank / LOCK} cannot be written: {error}") from error
