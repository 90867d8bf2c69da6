"""Reading a corpus: JSON lines `{"id": ..., "title": ..., "text": ...}`, plain or gzipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.dataset import read_passages
from data_pipeline.errors import DataError
from data_pipeline.schema import Document


def read_corpus(path: Path | str, first_number: int = 0) -> Iterator[Document]:
    """Documents of a .jsonl or .jsonl.gz file, numbered first_number, +1, ... in file order.

    `text` is required; `id` (its place without one) and `title` are optional; other keys are
    ignored; empty lines are skipped. Lazy: one line at a time.
    Raises DataError, naming file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"corpus {path}: no such file; give a .jsonl or .jsonl.gz file")
    for number, passage in enumerate(read_passages(path), first_number):
        yield Document(number, passage.text, passage.id, passage.title)
