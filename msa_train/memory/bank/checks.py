"""Compares segments with what was recorded when they were written: files, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import SegmentEntry, StoredFile
from msa_train.memory.bank.segment import Segment, id_digest

T, R = TypeVar("T"), TypeVar("R")

_NAMED = 5  # documents or problems in a message; there may be thousands


def check_before_copying(segments: Sequence[Segment]) -> None:
    """Reads every byte of segments that are to be rewritten: a copy has fresh checksums, so damage
    would pass for data ever after.

    Raises BankError, naming the files, and the documents in them, that were changed.
    """
    problems = []
    for segment in segments:
        if changed := changed_files(segment.folder.parent, segment.entry):
            problems += [*changed, *segment_problems(segment)]
    if problems:
        raise BankError(
            f"{_first(problems, '; ')}: nothing was rewritten; restore the segment from a copy, or "
            "build the bank again from its texts (msa memory texts)"
        )


def check_keys(files: Sequence[tuple[Segment, int]]) -> None:
    """Reads all router keys of some segments and layers, a file in each of torch's threads.

    Raises BankError for one that was changed.
    """
    for _ in _in_threads(lambda each: each[0].check_keys(each[1]), files):
        pass


def changed_files(folder: Path, entry: SegmentEntry) -> list[str]:
    """Problems with a segment's files, each read and compared with its checksum."""
    files = [(folder / entry.name / name, known) for name, known in entry.files.items()]
    return [found for found in _in_threads(_problem, files) if found is not None]


def _problem(given: tuple[Path, StoredFile]) -> str | None:
    file, expected = given
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    if found != expected.sha256:
        return f"{file} was changed (sha256 {found[:12]})"
    return None


def _in_threads(work: Callable[[T], R], given: Sequence[T]) -> Iterator[R]:
    """work(each), in order; reading files and digesting them let other threads run."""
    threads = min(torch.get_num_threads(), len(given))
    if threads <= 1:
        yield from map(work, given)
        return
    pool = ThreadPoolExecutor(threads, "checks")
    try:
        yield from pool.map(work, given)
    finally:
        pool.shutdown(cancel_futures=True)


def segment_problems(segment: Segment) -> list[str]:
    """Counts that do not agree, and documents and states that differ from their checksums."""
    entry, documents, problems = segment.entry, segment.documents, []
    counts = (
        len(documents), int(documents.chunks.sum()), int(documents.tokens.sum()),
        int(documents.numbers[0]), int(documents.numbers[-1]),
    )  # fmt: skip
    if counts != (entry.documents, entry.chunks, entry.tokens, entry.first, entry.last):
        problems.append(f"{segment.folder}: its documents are not those of the manifest")
    if (np.diff(documents.numbers) <= 0).any():
        problems.append(f"{segment.folder}: document numbers do not ascend")
    problems += documents.damaged() or _id_problems(segment)
    for layer in segment.pooled:
        if changed := segment.changed_states(layer):
            numbers = _first(list(map(str, changed)), ", ")
            problems.append(
                f"{segment.folder}: K or V differ from their checksums in layer {layer}, documents "
                f"{numbers}"
            )
    return problems


def _id_problems(segment: Segment) -> list[str]:
    """Problems with the digests by which documents are found by id."""
    try:
        digests, rows = segment.ids
    except BankError as error:
        return [str(error)]
    ids = segment.documents.column("id").to_pylist()
    expected = np.array([id_digest(id) for id in ids], dtype=np.uint64)
    whole = np.array_equal(np.sort(rows), np.arange(len(ids), dtype=np.uint64))
    if whole and np.array_equal(expected[rows.astype(np.int64)], digests):
        return [] if (digests[1:] >= digests[:-1]).all() else [f"{segment.folder}: ids in disorder"]
    return [f"{segment.folder}: ids are not found by their digests"]


def _first(texts: Sequence[str], between: str) -> str:
    """So many as a message names."""
    more = len(texts) - _NAMED
    return between.join([*texts[:_NAMED], *([f"{more} more"] if more > 0 else [])])
