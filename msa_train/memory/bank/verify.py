"""Reads a whole bank and compares every byte with what was written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from msa_train.errors import BankError
from msa_train.memory.bank.checks import changed_files, segment_problems
from msa_train.memory.bank.manifest import SEGMENTS, BankManifest
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot, read_removed, tries
from msa_train.memory.bank.writer import unlisted


def verify_bank(path: Path | str) -> dict[str, Any]:
    """A report: `problems` (none: the bank is whole), counts, and files that no manifest lists.

    A bank that changes meanwhile is read again. Raises BankError only where there is no readable
    manifest, or the bank changes all the time.
    """
    path = Path(path)
    for _ in tries():
        manifest = BankManifest.load(path)
        report = _report(path, manifest)
        if not report["problems"] or BankManifest.load(path) == manifest:
            return report
    raise BankError(f"{path} changes faster than it is read: verify it while nothing writes to it")


def _report(path: Path, manifest: BankManifest) -> dict[str, Any]:
    problems: list[str] = []
    for entry in manifest.segments:
        problems += changed_files(path / SEGMENTS, entry)
        try:
            problems += segment_problems(Segment(path / SEGMENTS, entry, manifest.form))
        except BankError as error:
            problems.append(str(error))
    try:
        removed = read_removed(path, manifest)
        if not problems:
            problems += _number_problems(BankSnapshot(path, manifest), removed)
    except BankError as error:
        problems.append(str(error))
    orphans: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # a writer is removing them
        orphans = unlisted(path, manifest)
    return {
        "path": str(path),
        "generation": manifest.generation,
        "segments": len(manifest.segments),
        "files": sum(len(entry.files) for entry in manifest.segments),
        **{name: manifest.total(name) for name in ("documents", "chunks", "tokens", "bytes")},
        "removed": manifest.removed.count if manifest.removed else 0,
        "problems": sorted(set(problems)),
        "orphans": [str(each) for each in orphans],
        "orphan_bytes": sum(map(_size, orphans)),
    }


def _number_problems(bank: BankSnapshot, removed: np.ndarray) -> list[str]:
    problems = []
    if len(bank.numbers) and int(bank.numbers[-1]) >= bank.manifest.next_number:
        problems.append(f"{bank.path}: next_number would give a document number twice")
    if not np.isin(removed, bank.numbers.numpy()).all() or (np.diff(removed) <= 0).any():
        problems.append(f"{bank.path}: removed numbers are not those of its documents")
    return problems


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # a writer has removed it
        if path.is_dir():
            return sum(_size(each) for each in path.iterdir())
        return path.lstat().st_size
    return 0
