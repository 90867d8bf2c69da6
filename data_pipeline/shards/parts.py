"""Shards built in parts, by any number of machines that share a folder.

Part K of N builds every N-th shard, in the same hidden folder that a whole build uses. So what died
is started again, on any machine, and keeps what it had, and a whole build afterwards finds all of
it there. Each holds a lease, by which two of the same part at once are refused.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.leases import Lease, Owner, living, owners
from data_pipeline.locks import HeldError
from data_pipeline.processes import InterruptedBuild

PREPARING_S = 24 * 3600.0  # for one part to prepare what all of them read
_PREPARING, _WHOLE = "preparing", "building"  # leases, beside those of the parts


@dataclass(frozen=True)
class BuildPart:
    """Part `number` (from 1) of `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> BuildPart:
        """Of "3/16". Raises DataError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found and 1 <= int(found[1]) <= int(found[2]):
            return cls(int(found[1]), int(found[2]))
        raise DataError(f"--part is {text}: give K/N, as in 3/16 (K from 1 to N)")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def shards(self, total: int) -> range:
        return range(self.number - 1, total, self.count)

    @property
    def name(self) -> str:
        return f"part-{self.number}-of-{self.count}"

    @contextmanager
    def held(self, folder: Path) -> Iterator[Callable[[], None]]:
        """While this process builds the part; calling what it gives raises InterruptedBuild once
        another has taken it over. Raises DataError where another one builds it, or builds all, or
        in another number of parts."""
        with _lease(folder, self.name, f"part {self}") as check:
            others = [part.name for part in _parts(folder) if part.count != self.count]
            if owner := living(folder, [_WHOLE, *others]):
                raise DataError(
                    f"part {self} of {folder} cannot be built beside {owner.said}: wait for that, "
                    "or stop it"
                )
            yield check


@contextmanager
def whole_build(folder: Path) -> Iterator[Callable[[], None]]:
    """As BuildPart.held, for all shards at once."""
    with _lease(folder, _WHOLE, "all shards") as check:
        if owner := living(folder, [part.name for part in _parts(folder)]):
            raise DataError(f"{folder} is being built by {owner.said}: wait for it, or stop it")
        yield check


@contextmanager
def _lease(folder: Path, name: str, what: str) -> Iterator[Callable[[], None]]:
    try:
        lease = Lease(folder, name, what)
    except HeldError as error:
        raise DataError(
            f"{what} of {folder} is being built by {error}: wait for it, or stop it"
        ) from None
    if lease.dead:
        print(f"{what}: taken over from {lease.dead}, which died", file=sys.stderr, flush=True)

    def check() -> None:
        try:
            lease.check()
        except HeldError as error:
            raise InterruptedBuild(
                f"{what} of {folder} was taken over by {error}, since this process had stood still"
            ) from None

    with lease:
        yield check


@contextmanager
def preparing(folder: Path, pause_s: float = 1.0) -> Iterator[None]:
    """One part at a time; others wait for it, PREPARING_S at most."""
    end, told = time.monotonic() + PREPARING_S, False
    while True:
        try:
            lease = Lease(folder, _PREPARING, "preparing what all parts read")
            break
        except HeldError as error:
            if time.monotonic() > end:
                raise DataError(f"waited {PREPARING_S:.0f} s for {error} in {folder}") from None
            if not told:
                print(f"waiting for {error}", file=sys.stderr, flush=True)
            told = True
        time.sleep(pause_s)
    with lease:
        yield


def any_begun(folder: Path) -> bool:
    """Whether there are, or were, parts."""
    return bool(_parts(folder))


def missing(folder: Path, shards: Iterable[int]) -> str:
    """Which parts these shards are missing of, and where those were begun, in words."""
    parts = _parts(folder)
    shards, counts = list(shards), {part.count for part in parts}
    if len(counts) != 1:
        return f"{len(shards)} shards are not built: {', '.join(map(str, shards[:5]))}, ..."
    count = counts.pop()
    said = []
    for number in sorted({shard % count + 1 for shard in shards}):
        part = BuildPart(number, count)
        own = sum(shard % count == number - 1 for shard in shards)
        begun = f"begun on {parts[part].host}" if part in parts else "never begun"
        said.append(f"part {part} ({own} shards, {begun})")
    return f"{', '.join(said)} of {count} not built"


def _parts(folder: Path) -> dict[BuildPart, Owner]:
    found = {}
    for name, owner in owners(folder).items():
        if numbers := re.fullmatch(r"part-(\d+)-of-(\d+)", name):
            found[BuildPart(int(numbers[1]), int(numbers[2]))] = owner
    return found
