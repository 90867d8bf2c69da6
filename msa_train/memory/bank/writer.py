"""Changing a bank: one writer at a time, every change one replacement of the manifest.

The files of a change are written first, beside those in use; then the new manifest makes them part
of the bank. A writer that dies before that leaves the bank as it was, and files that the next
writer removes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from data_pipeline import files
from msa_train.errors import BankError
from msa_train.memory.bank.checks import check_before_copying
from msa_train.memory.bank.lock import LOCK, WriterLock
from msa_train.memory.bank.manifest import (
    MANIFEST,
    SEGMENTS,
    BankForm,
    BankManifest,
    Removed,
    SegmentEntry,
)
from msa_train.memory.bank.segment import EncodedBatch, Segment, SegmentWriter, Target
from msa_train.memory.bank.snapshot import BankSnapshot

SEGMENT_DOCUMENTS = 1 << 17  # in a segment, at most
_COPIED = 1024  # documents that compaction holds in memory


class UnknownDocumentError(BankError):
    """A document that was to be removed is not there. which: "of id 'x'", or its number."""

    def __init__(self, bank: Path, which: str, consequence: str):
        super().__init__(f"{bank} has no document {which}: {consequence}")
        self.which = which


def create_bank(path: Path, form: BankForm) -> None:
    """An empty bank at `path`, which must not exist."""
    files.make_folder(path)
    files.make_folder(path / SEGMENTS)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    BankManifest(form, created).save(path)


class BankWriter:
    """Writes to a bank until it is closed. Raises BusyError where another writer is open.

    bank: the newest snapshot. reuse: an older one, so that only what changed is opened.
    """

    def __init__(
        self,
        path: Path | str,
        operation: str,
        fingerprint: dict[str, str] | None = None,
        segment_documents: int = SEGMENT_DOCUMENTS,
        reuse: BankSnapshot | None = None,
    ):
        self.path, self._operation = Path(path), operation
        self._segment_documents = segment_documents
        BankManifest.load(self.path)  # or a lock would be left in a folder that is no bank
        self.lock = WriterLock(self.path, operation)
        try:
            self.bank = BankSnapshot.open(self.path, fingerprint, reuse)
            if self.lock.dead:
                print(f"{self.path}: {self.lock.dead} did not finish", file=sys.stderr)
            self.manifest = self.bank.manifest
            with self._reported():
                self.clear()
        except BaseException:
            self.lock.release()
            raise

    def add(self, batches: Iterable[EncodedBatch], replaced: Iterable[int] = ()) -> int:
        """Adds encoded documents, numbered from manifest.next_number on, and removes `replaced`.

        In one commit; returns how many were added. On any error the bank is as it was.
        """
        return self.add_segments(self._write(batches), replaced)

    def add_segments(
        self, sealed: Generator[SegmentEntry, None, None], replaced: Iterable[int] = ()
    ) -> int:
        """As add; the iterator seals segments in `target`, in any order."""
        with self._reported(), contextlib.closing(sealed):
            before = self.manifest
            entries = tuple(sorted(sealed, key=lambda entry: entry.first))
            if not entries and not replaced:
                return 0
            assert all(entry.first >= before.next_number for entry in entries), "numbers come back"
            following = max([before.next_number, *(entry.last + 1 for entry in entries)])
            self._commit(
                before.segments + entries, {*self.bank.removed.tolist(), *replaced}, following
            )
            return sum(entry.documents for entry in entries)

    def remove(self, numbers: Iterable[int] = (), ids: Iterable[str] = ()) -> list[int]:
        """Removes documents by number, and all that have one of `ids`; returns their numbers.

        A part of a split document goes with all its other parts: else a question would find what
        was removed. The numbers are never given again. Raises UnknownDocumentError, and removes
        nothing, where one of them is not there.
        """
        gone: set[int] = set()
        for id in ids:
            if not (found := self.bank.numbers_of(id)):
                raise UnknownDocumentError(self.path, f"of id {id!r}", "none was removed")
            gone.update(found)
        for number in numbers:
            if self.bank.place_of(number) is None:
                raise UnknownDocumentError(self.path, str(number), "nothing was removed")
            gone.update(self.bank.whole_of(number))
        if gone:
            with self._reported():
                segments, following = self.manifest.segments, self.manifest.next_number
                self._commit(segments, {*self.bank.removed.tolist(), *gone}, following)
        return sorted(gone)

    def compact(self) -> None:
        """Rewrites segments that hold removed documents, and joins small neighbours.

        Raises BankError, and rewrites nothing, where one of them was changed on disk.
        """
        with self._reported():
            groups = list(self._groups())
            check_before_copying(
                [each for group in groups if self._copies(group) for each in group]
            )
            kept: list[SegmentEntry] = []
            for group in groups:
                copies = self._copies(group)
                kept += self._write(self._copied(group)) if copies else [group[0].entry]
            if tuple(kept) != self.manifest.segments or self.manifest.removed:
                self._commit(tuple(kept), set(), self.manifest.next_number)

    def keep(self, entry: SegmentEntry | None = None) -> None:
        """Lists a finished segment of a bank that is being built, instead of those it overlaps.

        The generation stays 0 until `complete`.
        """
        kept = list(self.manifest.segments)
        if entry is not None:
            kept = [e for e in kept if e.last < entry.first or e.first > entry.last] + [entry]
        kept.sort(key=lambda each: each.first)
        following = kept[-1].last + 1 if kept else 0
        changed = replace(self.manifest, generation=0, segments=tuple(kept), next_number=following)
        if changed != self.manifest:
            self._save(changed)

    def forget(self, entry: SegmentEntry) -> None:
        """Drops a segment of a bank that is being built, and removes its files."""
        kept = tuple(each for each in self.manifest.segments if each != entry)
        self._save(replace(self.manifest, segments=kept))
        files.remove(self.path / SEGMENTS / entry.name)

    def complete(self, entries: Iterable[SegmentEntry]) -> None:
        """Commits a bank that is being built: these are its segments."""
        ordered = sorted(entries, key=lambda entry: entry.first)
        self._commit(tuple(ordered), set(), ordered[-1].last + 1 if ordered else 0)

    @property
    def target(self) -> Target:
        """Where the segments of the next commit are written."""
        return Target(self.path / SEGMENTS, self.manifest.form, self.manifest.generation + 1)

    def close(self) -> None:
        self.lock.release()

    def __enter__(self) -> BankWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _groups(self) -> Iterator[list[Segment]]:
        """Neighbours that fit in one segment."""
        group: list[Segment] = []
        held = 0
        for segment in self.bank.segments:
            documents = segment.entry.documents - self._removed_in(segment.entry)
            if group and held + documents > self._segment_documents:
                yield group
                group, held = [], 0
            group.append(segment)
            held += documents
        if group:
            yield group

    def _copies(self, group: list[Segment]) -> bool:
        """Whether compaction rewrites these neighbours."""
        return len(group) > 1 or self._removed_in(group[0].entry) > 0

    def _removed_in(self, entry: SegmentEntry) -> int:
        first, last = np.searchsorted(self.bank.removed, [entry.first, entry.last + 1])
        return int(last - first)

    def _copied(self, group: list[Segment]) -> Iterator[EncodedBatch]:
        for segment in group:
            numbers = segment.documents.numbers
            live = np.flatnonzero(~np.isin(numbers, self.bank.removed))
            for start in range(0, len(live), _COPIED):
                yield _batch(segment, live[start : start + _COPIED])

    def _write(self, batches: Iterable[EncodedBatch]) -> Generator[SegmentEntry, None, None]:
        """Seals segments, which no manifest lists yet."""
        writer: SegmentWriter | None = None
        try:
            for batch in batches:
                if writer and writer.documents + len(batch.documents) > self._segment_documents:
                    yield writer.seal()
                    writer = None
                if writer is None:
                    writer = self.target.segment(batch.documents[0].number)
                writer.append(batch)
            if writer is not None:
                yield writer.seal()
                writer = None
        finally:
            if writer is not None:
                writer.abandon()

    def _commit(self, segments: tuple[SegmentEntry, ...], removed: set[int], following: int):
        gone = np.array(sorted(removed), dtype="<i8")
        manifest = self.manifest.following(
            segments=segments, removed=self._save_removed(gone), next_number=following
        )
        self._save(manifest)
        self.bank = BankSnapshot.open(self.path, reuse=self.bank)
        with contextlib.suppress(OSError):  # the next writer tries again
            self.clear()

    def _save(self, manifest: BankManifest) -> None:
        manifest.save(self.path)
        self.manifest = manifest

    def _save_removed(self, gone: np.ndarray) -> Removed | None:
        if not len(gone):
            return None
        name = f"removed-{self.manifest.generation + 1:06}.i64"
        with files.NewFile(self.path / name) as file:
            file.write(gone)
        return Removed(name, len(gone), file.sha256)

    def clear(self) -> None:
        """Removes the files that the manifest on disk (read again) does not list."""
        for path in unlisted(self.path, BankManifest.load(self.path)):
            files.remove(path)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.clear()
            if not isinstance(error, OSError):
                raise
            raise BankError(
                f"{self._operation}: {self.path} cannot be written: {error}; the bank is as it "
                "was, repeat what you did when the cause is gone"
            ) from error


def unlisted(path: Path, manifest: BankManifest) -> list[Path]:
    """Files and folders of a bank's folder that its manifest does not list."""
    listed = {MANIFEST, LOCK, SEGMENTS}
    if manifest.removed:
        listed.add(manifest.removed.name)
    segments = {entry.name: entry.files for entry in manifest.segments}
    found = [each for each in path.iterdir() if each.name not in listed]
    for each in (path / SEGMENTS).iterdir():
        if each.name not in segments:
            found.append(each)
        elif each.is_dir():
            found += [file for file in each.iterdir() if file.name not in segments[each.name]]
    return sorted(found)


def _batch(segment: Segment, rows: np.ndarray) -> EncodedBatch:
    """The documents in some rows of a segment, as they were encoded."""
    places = torch.from_numpy(rows)
    cu = segment.chunk_cu
    counts = cu.diff()[places]
    chunks = torch.cat([torch.arange(int(cu[row]), int(cu[row + 1])) for row in rows.tolist()])
    pooled = {n: states.map(lambda x: x[chunks]) for n, states in segment.pooled.items()}
    tokens = torch.from_numpy(segment.documents.tokens[rows])
    return EncodedBatch([segment.documents[row] for row in rows.tolist()], tokens, counts, pooled)
