"""How far a long piece of work is: a bar on standard error, nothing where that is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LABEL = 28  # letters that a changing label takes, so that the bar stays where it is


class ProgressBar:
    """Counts what is done, for as long as the block lasts; the time left follows from the total.

    unit: what is counted. total: how many there will be, None where that is not known; a function
    is asked again with every count. work: what takes the time, where that is not the unit itself
    ("tokens" of documents): it is counted too, and its rate per second shown.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        total: int | Callable[[], int | None] | None = None,
        work: str | None = None,
    ):
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._unit, self._total, self._work = unit, total, work
        self._done = self._worked = 0
        self._began = time.monotonic()
        known = None if callable(total) else total
        self._task = self._bar.add_task(label, total=known, counts=self._counts(known))

    def advance(self, count: int, work: int = 0) -> None:
        """`count` more are done, which took `work`."""
        self._done += count
        self._worked += work
        total = self._total() if callable(self._total) else self._total
        self._bar.update(self._task, advance=count, total=total, counts=self._counts(total))

    def describe(self, label: str) -> None:
        """What is being done now."""
        self._bar.update(self._task, description=f"{label:<{_LABEL}}")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _counts(self, total: int | None) -> str:
        counts = f"{self._done:,}"
        if total is not None:
            counts = f"{counts:>{len(f'{total:,}')}}/{total:,}"
        counts = f"{counts} {self._unit}"
        if self._work is not None:
            rate = self._worked / max(time.monotonic() - self._began, 1e-9)
            counts += f" {self._worked:,} {self._work} {rate:,.0f}/s"
        return counts
