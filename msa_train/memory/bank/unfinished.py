"""A bank that is being built: what is finished of it survives whatever interrupts the build.

It lies beside its name, see building_name. Every finished block is a segment of its manifest, whose
generation stays 0; the last commit and a rename make it the bank.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline import files
from data_pipeline.schema import Document
from msa_train.errors import BankError
from msa_train.memory.bank.lock import BusyError, WriterLock
from msa_train.memory.bank.manifest import BankForm, SegmentEntry, building_name
from msa_train.memory.bank.segment import Target, changed_files
from msa_train.memory.bank.writer import BankWriter, create_bank


class UnfinishedBank:
    """The writer of a new bank; takes up what an interrupted build of the same form left.

    Raises BusyError where a build is at work. Leaving it without `finish` keeps finished blocks,
    and says so; without any, nothing is left.
    """

    def __init__(self, path: Path, form: BankForm):
        self.path, self._folder = path, building_name(path)
        self._writer = self._taken_up(form) or self._new(form)
        self._left = {each.entry.first: each for each in self._writer.bank.segments}
        self._used: list[SegmentEntry] = []
        self._finished = False

    @property
    def target(self) -> Target:
        return self._writer.target

    @property
    def lock(self) -> WriterLock:
        return self._writer.lock

    def has(self, block: Sequence[Document]) -> bool:
        """Whether an earlier build finished this block: its documents and all bytes compared."""
        segment = self._left.pop(block[0].number, None)
        if segment is None:
            return False
        if not segment.documents.holds(block):
            problem = f"{segment.folder} holds other documents"
        elif problems := changed_files(segment.folder.parent, segment.entry):
            problem = problems[0]
        else:
            self._used.append(segment.entry)
            return True
        _say(f"{problem}: encoded anew")
        self._writer.forget(segment.entry)
        return False

    def put(self, entry: SegmentEntry) -> None:
        """A block is finished: from now on it need not be encoded again."""
        self._writer.keep(entry)
        self._used.append(entry)

    def finish(self) -> None:
        """Makes it the bank. Raises BankError where one appeared meanwhile."""
        if self.path.exists():
            raise BankError(f"{self.path} appeared while its documents were encoded: left alone")
        if self._used or self._writer.manifest.segments:
            self._writer.complete(self._used)
        files.rename(self._folder, self.path)
        self._finished = True

    def __enter__(self) -> UnfinishedBank:
        return self

    def __exit__(self, *_) -> None:
        try:
            # Renamed, but for the sync of its name: what is there is the bank.
            if not self._finished and self._folder.exists():
                with contextlib.suppress(OSError):
                    self._leave()
        finally:
            self._writer.close()

    def _leave(self) -> None:
        segments = self._writer.manifest.segments
        if not segments:
            files.remove(self._folder)
            return
        documents = sum(entry.documents for entry in segments)
        _say(
            f"{documents:,} encoded documents are kept in {self._folder}: build again to go on, "
            "or remove it"
        )
        self._writer.clear()

    def _taken_up(self, form: BankForm) -> BankWriter | None:
        if not self._folder.exists():
            return None
        try:
            writer = BankWriter(self._folder, "build", form.fingerprint)
        except BusyError:
            raise
        except BankError as error:
            problem = str(error)
        else:
            if writer.manifest.form == form:
                if found := len(writer.bank):
                    _say(f"{self._folder}: {found:,} documents are encoded already")
                writer.keep()  # a build that was complete, but for its name, is none yet
                return writer
            writer.close()
            problem = f"{self._folder} holds states of another form ({writer.manifest.form.dtype})"
        _say(f"{problem}; building anew")
        return None

    def _new(self, form: BankForm) -> BankWriter:
        if self._folder.exists():
            lock = WriterLock(self._folder, "build")  # whoever came in between is left alone
            files.remove(self._folder)
            lock.release()
        create_bank(self._folder, form)
        return BankWriter(self._folder, "build")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
