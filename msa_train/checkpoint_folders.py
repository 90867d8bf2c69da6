"""Checkpoint folders are complete or absent: written aside, sealed, then renamed.

FOLDER/step-000500/            a complete checkpoint
FOLDER/step-000500/seal.json   size and SHA-256 of every other file in it, and what speaks against
                               going on from it ("flaw"), if anything does
FOLDER/.step-000500.partial/   one that is being written, or that a crash left; never read
FOLDER/best.json               the best one, where a run looks for it: its name, and by what
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline import files
from msa_train.errors import CheckpointError

SEAL, BEST = "seal.json", "best.json"
SKIPPED = "the step before it was skipped"  # flaws
NOT_FINITE = "its weights are not finite"
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


def digests(folder: Path, part: int = 0, parts: int = 1, known: Collection[str] = ()) -> Digests:
    """Digests of every `parts`-th file, from the `part`-th on, which are on the disk after this.

    So ranks share the work. The folder must be on a file system that all of them see. known: files
    that are left out.
    """
    found: Digests = {}
    written = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    for path in written[part::parts]:
        if str(path.relative_to(folder)) in known:
            continue
        files.sync(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = path.stat().st_size, digest
    return found


def seal(partial: Path, step: int, found: Digests, flaw: str | None = None) -> Path:
    """Make a written folder a complete one; returns its final path.

    flaw: why nothing should go on from it though it is whole (None: it is good).
    """
    seal = {"step": step, "flaw": flaw, "files": found}
    files.replace_file(partial / SEAL, json.dumps(seal, indent=1, sort_keys=True))
    files.sync_tree(partial)
    target = partial.parent / name_of(step)
    if target.exists():  # damaged, flawed, or this step would not have come again
        remove(target)
    files.rename(partial, target)
    return target


def newest_first(folder: Path) -> Iterator[Path]:
    """Complete folders by step, unchecked: a number says nothing about what is in a folder."""
    yield from sorted((path.parent for path in folder.glob(f"step-*/{SEAL}")), reverse=True)


def is_complete(folder: Path, step: int) -> bool:
    """Whether there is a folder of this step, unchecked."""
    return (folder / name_of(step) / SEAL).is_file()


def last_step(folder: Path) -> int:
    """Step of the newest undamaged folder, 0 without one."""
    for newest in _whole(folder, {}):
        return int(_sealed(newest)["step"])
    return 0


def newest_good(folder: Path, known: Mapping[Path, Digests] | None = None) -> Path | None:
    """The newest folder that is whole and has no flaw, or None if there is none at all.

    known: digests that have been taken already.

    Others are named on standard error. Where no folder is good, the newest is taken that follows a
    skipped step, for such a step changes nothing. Raises CheckpointError when there is none either.
    """
    second = None
    for target in _whole(folder, known or {}):
        flaw = flaw_of(target)
        if flaw is None:
            return target
        print(f"checkpoint passed over: {target}: {flaw}", file=sys.stderr, flush=True)
        if second is None and flaw == SKIPPED:
            second = target
    if second is None and any(newest_first(folder)):
        raise CheckpointError(f"no checkpoint in {folder} is whole and good: start a new run")
    return second


def mark_best(folder: Path, step: int | None, **why: Any) -> None:
    """Name the folder of a step the best one, or none."""
    if step is None:
        (folder / BEST).unlink(missing_ok=True)
        return
    record = {"checkpoint": name_of(step), "step": step, **why}
    files.replace_file(folder / BEST, json.dumps(record) + "\n")


def best_of(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder that is named the best one, unchecked, and what is written of it; None: none is.

    Raises CheckpointError where that cannot be read.
    """
    path = folder / BEST
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        return folder / record["checkpoint"], record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): remove it, and give a checkpoint by its name"
        ) from error


def check(folder: Path, found: Digests | None = None) -> None:
    """Raises CheckpointError naming the first file that is missing, changed or cut short.

    found: the folder's digests, where they have been taken already.
    """
    try:
        expected = _sealed(folder)["files"]
        found = digests(folder) if found is None else found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no complete checkpoint: {error}") from error
    for name, (size, digest) in sorted(expected.items()):
        if name not in found:
            raise CheckpointError(f"{folder / name} is missing")
        if found[name][0] != size:
            raise CheckpointError(f"{folder / name} has {found[name][0]} bytes, not {size}")
        if found[name][1] != digest:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 differs")


def flaw_of(folder: Path) -> str | None:
    """Why nothing should go on from a complete folder, whole or not."""
    try:
        return _sealed(folder).get("flaw")
    except (OSError, ValueError, AttributeError) as error:
        return f"its {SEAL} cannot be read ({error})"


def _whole(folder: Path, known: Mapping[Path, Digests]) -> Iterator[Path]:
    """Undamaged folders, newest first; damaged ones are named on standard error."""
    for target in newest_first(folder):
        try:
            check(target, known.get(target))
        except CheckpointError as error:
            print(f"checkpoint refused: {error}", file=sys.stderr, flush=True)
            continue
        yield target


def _sealed(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SEAL).read_text())


def remove(folder: Path) -> None:
    """Remove a complete folder; at no moment does half of it look complete."""
    aside = folder.with_name(f".{folder.name}.removed")
    if aside.exists():  # of a removal that was interrupted
        files.remove(aside)
    files.rename(folder, aside)
    files.remove(aside)
