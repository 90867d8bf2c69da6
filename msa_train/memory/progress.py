"""A progress line on standard error: tokens per second and time left; quiet elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from msa_train.memory.encoder import EncodedBatch


def with_progress(
    batches: Iterable[EncodedBatch], total: int | None = None
) -> Iterator[EncodedBatch]:
    """Passes batches through; `total` documents, if known, give the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from batches
        return
    columns = (
        TextColumn("encoding"), BarColumn(), TextColumn("{task.fields[tokens]:,} tokens"),
        TextColumn("{task.fields[rate]:,.0f}/s"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    began, tokens = time.monotonic(), 0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, tokens=0, rate=0.0)
        for batch in batches:
            yield batch
            tokens += int(batch.tokens.sum())
            rate = tokens / max(time.monotonic() - began, 1e-9)
            bar.update(task, advance=len(batch.documents), tokens=tokens, rate=rate)
