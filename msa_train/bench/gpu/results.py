"""What the battery measured: rows on a named card, kept in one JSON file that is never half there.

A row is a number with its unit, beside the floor: what nothing can beat (a time), or what could be
had at most (a rate). Its ratio is the share of the floor that is reached, 1 at best; of errors and
of memory, which have no best, how much of the allowed or predicted amount is taken.
"""

from __future__ import annotations

import gc
import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import DataError
from data_pipeline.files import replace_file
from msa_train.bench.runner import log

DONE = "done"
_TIMES = ("ms", "s")
_DRIVER = Path("/proc/driver/nvidia/version")
_DIGITS = 4  # significant ones that are kept


@dataclass(frozen=True)
class Measured:
    """A number, its floor in the same unit, and what else is to be said."""

    value: float
    floor: float | None = None
    note: str = ""
    detail: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Row:
    """One number of the battery, or why it is not there (`failed`)."""

    what: str
    unit: str
    value: float | None = None
    floor: float | None = None
    ratio: float | None = None
    note: str = ""
    detail: tuple[tuple[str, float], ...] = ()  # such as names of a profile with their ms
    failed: str = ""
    card: str = ""
    driver: str = ""
    torch: str = ""
    triton: str = ""
    toy: bool = False


@dataclass(frozen=True)
class Provenance:
    """Where rows come from."""

    card: str
    driver: str
    torch: str
    triton: str

    @classmethod
    def here(cls) -> Provenance:
        """Of the process that computes."""
        cuda = torch.cuda.is_available()
        card = torch.cuda.get_device_name() if cuda else platform.machine() + " CPU"
        return cls(card, _driver() if cuda else "none", torch.__version__, _version_of("triton"))


@dataclass(frozen=True)
class PartResult:
    """state: `done`, or what ended the part."""

    state: str
    seconds: float
    rows: tuple[Row, ...]

    def kept_on(self, card: str, toy: bool) -> bool:
        """Whether there is nothing to measure again on this card."""
        whole = self.state == DONE and bool(self.rows)
        return whole and all(row.card == card and row.toy == toy for row in self.rows)

    def over(self, before: PartResult | None, card: str, toy: bool) -> PartResult:
        """While this part is not whole, with what an earlier attempt measured on this card and this
        one has not come to."""
        if before is None or self.state == DONE:
            return self
        there = {row.what for row in self.rows}
        earlier = (row for row in before.rows if row.card == card and row.toy == toy)
        return replace(self, rows=(*self.rows, *(x for x in earlier if x.what not in there)))


@dataclass(frozen=True)
class Results:
    """Of all parts, in a file. toy: numbers of toy sizes on a CPU, of no use but to be there."""

    toy: bool = False
    parts: dict[str, PartResult] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Of a file that may not exist. Raises DataError for another kind of file."""
        if not path.exists():
            return cls()
        try:
            given = json.loads(path.read_text())
            parts = {name: _part(part) for name, part in given["parts"].items()}
            return cls(given["toy"], parts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is no result of `msa bench gpu` ({error!r}): give another --json"
            ) from error

    def with_part(self, name: str, part: PartResult) -> Results:
        return replace(self, parts={**self.parts, name: part})

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(asdict(self), indent=1) + "\n")


def _part(given: dict[str, Any]) -> PartResult:
    known = {each.name for each in fields(Row)}
    rows = ({name: value for name, value in row.items() if name in known} for row in given["rows"])
    made = (Row(**{**row, "detail": tuple(map(tuple, row["detail"]))}) for row in rows)
    return PartResult(given["state"], given["seconds"], tuple(made))


def measured(what: str, unit: str, measure: Callable[[], Measured]) -> Row:
    """The row of a measurement. One that fails costs only itself, and says why."""
    log(f"gpu: {what}")
    try:
        found = measure()
    except Exception as error:  # libraries raise anything
        row = Row(what, unit, failed=reason(error))
        log(f"gpu: {what}: {row.failed}")
    else:
        row = _row(what, unit, found)
    if torch.cuda.is_available():
        gc.collect()  # models and engines are circles, and a failure's frames hold tensors
        torch.cuda.empty_cache()
    return row


def _row(what: str, unit: str, found: Measured) -> Row:
    ratio = None
    if found.floor and found.value:
        share = found.floor / found.value if unit in _TIMES else found.value / found.floor
        ratio = rounded(share)
    floor = None if found.floor is None else rounded(found.floor)
    return Row(what, unit, rounded(found.value), floor, ratio, found.note, found.detail)


def rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def reason(error: BaseException) -> str:
    """In one line, what stopped something, and which wheel it needs."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"needs the wheel {wheel_of(error.name)}"
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def wheel_of(module: str) -> str:
    """What pip installs for a module."""
    top = module.partition(".")[0]
    return {"megatron": "megatron-core", "yaml": "PyYAML", "Stemmer": "PyStemmer"}.get(
        top, top.replace("_", "-")
    )


def _driver() -> str:
    found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text()) if _DRIVER.is_file() else None
    return found[0] if found else "unknown"


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
