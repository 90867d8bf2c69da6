"""The progress bar of an encoding: tokens per second and time left, on a terminal only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from msa_train.memory.bank.encode import EncodedBatch


class EncodingProgress:
    """A bar on standard error while the `with` block lasts, if that is a terminal.

    expected: how many documents there will be (None: not known), asked after every batch.
    """

    def __init__(self, expected: Callable[[], int | None]):
        console = Console(stderr=True)
        columns = (
            TextColumn("encoding"), BarColumn(), TextColumn("{task.completed:,} documents"),
            TextColumn("{task.fields[tokens]:,} tokens"), TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, tokens=0, rate=0.0)
        self._expected = expected
        self._began, self._tokens = time.monotonic(), 0

    def encoded(self, documents: int, tokens: int) -> None:
        """Counts documents that were encoded."""
        self._tokens += tokens
        self._bar.update(
            self._task,
            advance=documents,
            tokens=self._tokens,
            rate=self._tokens / max(time.monotonic() - self._began, 1e-9),
            total=self._expected(),
        )

    def found(self, documents: int) -> None:
        """Counts documents that an earlier build encoded."""
        self._bar.update(self._task, advance=documents, total=self._expected())

    def __enter__(self) -> EncodingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()


def with_progress(
    batches: Iterable[EncodedBatch], total: int | None = None
) -> Iterator[EncodedBatch]:
    """Passes batches through; `total` documents, if known, give the time left."""
    with EncodingProgress(lambda: total) as progress:
        for batch in batches:
            yield batch
            progress.encoded(len(batch.documents), int(batch.tokens.sum()))
