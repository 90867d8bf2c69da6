"""Input files of published datasets: their splits, and JSON, tables and texts read from them.

What is wrong with a file is named by its place in it.
"""

from __future__ import annotations

import csv
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.json_list import read_list
from data_pipeline.errors import DataError
from data_pipeline.jsonl import id_of, open_input, read_lines, read_objects

DEFAULT_SPLIT = "train"
_LONGEST_CELL = 1 << 24  # csv's own limit of 128 KB is shorter than a published summary may be
_BATCH_ROWS = 1024  # of a Parquet file, in memory at once
_REQUIRED: Any = object()

Convert = Callable[[Builder, Sequence[Path], Sequence[str]], None]
AddRecord = Callable[[Builder, str, "Record"], None]


def files_with_splits(inputs: Sequence[Path], splits: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, split) pairs: one split for all files, or one for each of them in their order.

    Raises DataError when there are neither one split nor as many as files.
    """
    splits = splits or (DEFAULT_SPLIT,)
    if len(splits) == 1:
        return [(path, splits[0]) for path in inputs]
    if len(splits) != len(inputs):
        raise DataError(
            f"{len(splits)} splits ({', '.join(splits)}) for {len(inputs)} files: give one split, "
            "or one for each file"
        )
    return list(zip(inputs, splits, strict=True))


def files_by_split(inputs: Sequence[Path], splits: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split, as `files_with_splits` pairs them."""
    files: dict[str, list[Path]] = {}
    for path, split in files_with_splits(inputs, splits):
        files.setdefault(split, []).append(path)
    return files


def each_record(read: Callable[[Path], Iterable[Record]]) -> Callable[[AddRecord], Convert]:
    """Decorator: a converter of all files from the function that adds one record of them.

    read: the records of a file.
    """

    def converter(add: AddRecord) -> Convert:
        @wraps(add)
        def convert(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
            for path, split in files_with_splits(inputs, splits):
                for record in read(path):
                    add(builder, split, record)

        return convert

    return converter


def one_folder(inputs: Sequence[Path], holds: str) -> Path:
    """The one input, a folder. holds: what it must hold, for the message. Raises DataError."""
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise DataError(f"{', '.join(map(str, inputs))}: give one folder with {holds}")
    return inputs[0]


@dataclass(frozen=True)
class Record:
    """A JSON object of an input file.

    place: "FILE" or "FILE, line 7". path: where it stands in that, "data[3].paragraphs[0]".
    Every method raises DataError, naming both, for a field that is missing or of a wrong type.
    """

    data: dict[str, Any]
    place: str
    path: str = ""

    @property
    def where(self) -> str:
        return f"{self.place}, {self.path}" if self.path else self.place

    def error(self, says: str) -> DataError:
        return DataError(f"{self.where}: {says}")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string; given a default, it may be missing or null."""
        return self._get(key, str, "a string", default)

    def id(self, key: str, default: Any = _REQUIRED) -> Any:
        """A string with text or a whole number, as a string."""
        if (found := id_of(self.where, self.data, key)) is not None:
            return found
        if default is _REQUIRED:
            raise self._wrong(key, "an id, a string or a whole number")
        return default

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._get(key, bool, "true or false", default)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A whole number; given a default, it may be missing or null."""
        if isinstance(self.data.get(key), bool):
            raise self._wrong(key, "a whole number")
        return self._get(key, int, "a whole number", default)

    def list(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        return self._get(key, list, "a list", default)

    def texts(self, key: str, default: Any = _REQUIRED) -> list[str]:
        values = self.list(key, default)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of strings")
        return values

    def record(self, key: str) -> Record:
        return Record(self._get(key, dict, "an object"), self.place, self._path(key))

    def records(self, key: str, default: Any = _REQUIRED) -> Iterator[Record]:
        for index, value in enumerate(self.list(key, default)):
            yield _record(value, self.place, f"{self._path(key)}[{index}]")

    def _get(self, key: str, kind: type, wanted: str, default: Any = _REQUIRED) -> Any:
        value = self.data.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not isinstance(value, kind):
            raise self._wrong(key, wanted)
        return value

    def _wrong(self, key: str, wanted: str) -> DataError:
        if key not in self.data:
            return self.error(f'"{key}" is missing: give {wanted}')
        return self.error(f'"{key}" is {reprlib.repr(self.data[key])}: give {wanted}')

    def _path(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def line_records(path: Path) -> Iterator[Record]:
    """Records of a JSON-lines file. Raises DataError for a line that is not an object."""
    return (Record(data, where) for where, data in read_objects(path))


def list_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """Records of the list that a JSON file is, or that stands under `key` in it.

    Raises DataError for what is not JSON or not a list, or an element that is not an object.
    """
    return (_record(value, str(path), place) for place, value in read_list(path, key))


def rows(path: Path, key: str | None = None) -> Iterator[Record]:
    """Records of a file as Hugging Face's datasets are kept, or of one in the set's own form.

    A .parquet file, JSON lines, or a JSON list as `list_records` reads it. Raises DataError as
    these do.
    """
    if path.suffix == ".parquet":
        return _parquet_records(path)
    return line_records(path) if _is_lines(path, key) else list_records(path, key)


def _is_lines(path: Path, key: str | None) -> bool:
    """Whether the first line is an object by itself, without the list under `key`."""
    with open_input(path) as file:
        first = file.readline(_LONGEST_CELL).strip()
    if not first.startswith(b"{") or not first.endswith(b"}"):
        return False
    try:
        return key not in json.loads(first)
    except (ValueError, RecursionError):
        return False


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(_BATCH_ROWS):
                for data in batch.to_pylist():
                    row += 1
                    yield Record(data, f"{path}, row {row}")
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; copy it again") from error


def _record(value: Any, place: str, path: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}, {path}: give a JSON object, not {type(value).__name__}")
    return Record(value, place, path)


def read_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of a table without quoting, cut at tabs, or at spaces where a line has none.

    Raises DataError for a line not of UTF-8.
    """
    for where, line in read_lines(path):
        text = _utf8(where, line)
        yield where, text.split("\t") if "\t" in text else text.split()


def read_tsv(path: Path, columns: str) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of a tab-separated file without quoting.

    columns: their names, with a space between them. Raises DataError, naming file and line, for a
    line with more or fewer cells or not of UTF-8.
    """
    wanted = columns.split()
    for where, line in read_lines(path):
        cells = _utf8(where, line).split("\t")
        if len(cells) != len(wanted):
            raise DataError(
                f"{where}: has {len(cells)} columns, not {len(wanted)}: give "
                f"{', '.join(wanted)} with tabs between them"
            )
        yield where, cells


def _utf8(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error}; convert the file") from error


def read_csv(path: Path, columns: str, delimiter: str = ",") -> Iterator[Record]:
    """Rows of a CSV file whose header names at least `columns` (names with spaces between them).

    Raises DataError, naming the file and the line on which the row begins, for a header without
    one of them, a row with other cells than the header, and broken quotes.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open_input(path) as file:
        rows = csv.reader(
            io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True
        )
        header: list[str] | None = None
        begins = 1
        try:
            for row in rows:
                where, begins = f"{path}, line {begins}", rows.line_num + 1
                if header is None:
                    header = row
                    _check_header(where, header, columns.split())
                elif row:
                    yield _row(where, header, row)
        except csv.Error as error:
            raise DataError(f"{path}, line {begins}: not CSV: {error}; correct it") from error


def _check_header(where: str, header: list[str], columns: list[str]) -> None:
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{where}: the header has no column {', '.join(missing)}: give the published file"
        )


def _row(where: str, header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise DataError(
            f"{where}: has {len(row)} cells, and the header {len(header)}: give as many"
        )
    return Record(dict(zip(header, row, strict=True)), where)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError, naming file and line, when it is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8: {error}; convert the file") from error
