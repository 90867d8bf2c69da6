"""Checkpoint folders are complete or absent: written aside, sealed, then renamed.

FOLDER/step-000500/            a complete checkpoint
FOLDER/step-000500/seal.json   size and SHA-256 of every other file in it
FOLDER/.step-000500.partial/   one that is being written, or that a crash left; never read
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from data_pipeline import files
from msa_train.errors import CheckpointError

SEAL = "seal.json"
Digests = dict[str, tuple[int, str]]  # file, relative to the folder -> bytes, SHA-256


def name_of(step: int) -> str:
    return f"step-{step:09d}"


def partial_name(step: int) -> str:
    """Where a checkpoint is written before it is complete."""
    return f".{name_of(step)}.partial"


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted saves and removals left."""
    for left in folder.glob(".step-*"):
        files.remove(left)


def digests(folder: Path, part: int = 0, parts: int = 1) -> Digests:
    """Digests of every `parts`-th file, from the `part`-th on, which are on the disk after this.

    So ranks share the work. The folder must be on a file system that all of them see.
    """
    found: Digests = {}
    written = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    for path in written[part::parts]:
        files.sync(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = path.stat().st_size, digest
    return found


def seal(partial: Path, step: int, found: Digests) -> Path:
    """Make a written folder a complete one; returns its final path."""
    text = json.dumps({"step": step, "files": found}, indent=1, sort_keys=True)
    files.replace_file(partial / SEAL, text)
    files.sync_tree(partial)
    target = partial.parent / name_of(step)
    if target.exists():  # damaged, or this step would not have come again
        _remove(target)
    files.rename(partial, target)
    return target


def forget_old(folder: Path, keep: int) -> None:
    """Remove all complete folders but the newest `keep`."""
    for old in list(newest_first(folder))[keep:]:
        _remove(old)


def newest_first(folder: Path) -> Iterator[Path]:
    """Complete folders by step, unchecked."""
    yield from sorted((path.parent for path in folder.glob(f"step-*/{SEAL}")), reverse=True)


def last_step(folder: Path) -> int:
    """Step of the newest complete folder, 0 without one."""
    for newest in newest_first(folder):
        return int(json.loads((newest / SEAL).read_text())["step"])
    return 0


def newest_good(folder: Path) -> Path | None:
    """The newest undamaged folder, or None if there is none at all.

    Damaged ones are named on standard error. Raises CheckpointError when all are damaged.
    """
    refused = False
    for target in newest_first(folder):
        try:
            check(target)
            return target
        except CheckpointError as error:
            print(f"checkpoint refused: {error}", file=sys.stderr, flush=True)
            refused = True
    if refused:
        raise CheckpointError(f"no checkpoint in {folder} is whole: remove it to start again")
    return None


def check(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, changed or cut short."""
    try:
        expected = json.loads((folder / SEAL).read_text())["files"]
        found = digests(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no complete checkpoint: {error}") from error
    for name, (size, digest) in sorted(expected.items()):
        if name not in found:
            raise CheckpointError(f"{folder / name} is missing")
        if found[name][0] != size:
            raise CheckpointError(f"{folder / name} has {found[name][0]} bytes, not {size}")
        if found[name][1] != digest:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 differs")


def _remove(folder: Path) -> None:
    """Remove a complete folder; at no moment does half of it look complete."""
    aside = folder.with_name(f".{folder.name}.removed")
    if aside.exists():  # of a removal that was interrupted
        files.remove(aside)
    files.rename(folder, aside)
    files.remove(aside)
