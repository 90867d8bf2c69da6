"""Reading a corpus: JSON lines `{"id": ..., "title": ..., "text": ...}`, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.schema import Document


def read_corpus(path: Path | str, first_number: int = 0) -> Iterator[Document]:
    """Documents of a .jsonl or .jsonl.gz file, numbered first_number, +1, ... in file order.

    `text` is required; `id` and `title` are optional; other keys are ignored; empty lines are
    skipped. Lazy: one line at a time. Raises DataError, naming file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"corpus {path}: no such file; give a .jsonl or .jsonl.gz file")
    number = first_number
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
        try:
            for place, line in enumerate(lines, 1):
                if line.strip():
                    yield _document(line, number, f"{path}, line {place}")
                    number += 1
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"corpus {path} is no complete gzip file: {error}") from error


def _document(line: bytes, number: int, where: str) -> Document:
    try:
        data = json.loads(line)
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        raise DataError(f'{where}: give an object with a string "text", and "id", "title" if any')
    return Document(number, data["text"], str(data.get("id", "")), str(data.get("title", "")))
