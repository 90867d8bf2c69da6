"""JSON lines on disk, plain or gzipped: what is broken is named by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, line) of a text file, plain or .gz, lazily; empty lines are skipped.

    where: "FILE, line N", for messages. Raises DataError when the file is missing or cut short.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for place, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {place}", line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no complete gzip file: {error}; copy it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a JSON-lines file. Raises DataError for a line that is no object."""
    for where, line in read_lines(path):
        try:
            data = json.loads(line)
        except ValueError as error:  # not UTF-8, or not JSON
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise DataError(f"{where}: give a JSON object, not {type(data).__name__}")
        yield where, data
