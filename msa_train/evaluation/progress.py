"""How far an evaluation is: a bar on standard error, quiet where that is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar


class Progress:
    """Counts answered questions; `describe` says of which part."""

    def __init__(self, total: int):
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("questions"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def describe(self, part: str) -> None:
        self._bar.update(self._task, description=part)

    def advance(self, questions: int) -> None:
        self._bar.advance(self._task, questions)
