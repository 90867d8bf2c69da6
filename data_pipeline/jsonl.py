"""JSON lines on disk, plain or gzipped: what is broken is named by file and line."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import reprlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import DataError

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # where half a surrogate pair may be written


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """An input file, plain or .gz, as bytes; what fails while it is read names the file.

    Raises DataError when the file is missing, cut short, or not the UTF-8 text it is read as.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no complete gzip file: {error}; copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}; convert it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, line) of a text file, plain or .gz, lazily; empty lines are skipped.

    where: "FILE, line N", for messages. A byte order mark is no part of the first line. Raises
    DataError when the file is missing or cut short.
    """
    with open_input(path) as lines:
        for place, line in enumerate(lines, 1):
            if place == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield f"{path}, line {place}", line


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of a JSON-lines file. Raises DataError for a line that is not JSON."""
    return values_of(read_lines(path))


def values_of(lines: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
    """(where, value) of each (where, line).

    Raises DataError for a line that is not JSON, or whose texts could not be written as UTF-8.
    """
    for where, line in lines:
        try:
            text = line.decode("utf-8-sig")
            value = json.loads(text)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deep
            raise DataError(f"{where}: not JSON: {error}; correct the line") from error
        check_strings(where, value, text)
        yield where, value


def check_strings(where: str, value: Any, text: str) -> None:
    """Raises DataError for half a surrogate pair in a value that was read from JSON.

    text: the JSON; only where it holds an escape can the value hold such a half.
    """
    if not _HALF.search(text):
        return
    parts = value.items() if isinstance(value, dict) else [("", value)]
    for key, part in parts:
        try:
            json.dumps([key, part], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            named = f"{key!a} holds" if key else "it holds"
            half = error.object[error.start]
            raise DataError(
                f"{where}: {named} half a surrogate pair ({half!a}), which is no text: correct it"
            ) from error


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a JSON-lines file. Raises DataError for a line that is not an object."""
    return objects_of(read_lines(path))


def objects_of(lines: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each (where, line). Raises DataError for a line that is not an object."""
    for where, data in values_of(lines):
        if not isinstance(data, dict):
            raise DataError(f"{where}: give a JSON object, not {type(data).__name__}")
        yield where, data


def id_of(where: str, data: dict[str, Any], key: str) -> str | None:
    """The id under a key, as a string; None where it is missing, null or empty.

    Raises DataError for what is neither a string nor a whole number: its form in Python, such as
    "False", would be an id that nobody gave.
    """
    value = data.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f'{where}: "{key}" is {reprlib.repr(value)}: give an id, a string or a whole number'
        )
    return str(value)
