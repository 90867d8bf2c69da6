"""Tables of input files: tab-separated lines, and CSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.converters.records import Record
from data_pipeline.errors import DataError
from data_pipeline.jsonl import open_input, read_lines

_LONGEST_CELL = 1 << 24  # csv's own limit of 128 KB is shorter than a published summary may be


def read_tsv(path: Path, columns: str) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of a tab-separated file without quoting.

    columns: their names, with a space between them. Raises DataError, naming file and line, for a
    line with more or fewer cells or not of UTF-8.
    """
    wanted = columns.split()
    for where, line in read_lines(path):
        try:
            cells = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8: {error}; convert the file") from error
        if len(cells) != len(wanted):
            raise DataError(
                f"{where}: has {len(cells)} columns, not {len(wanted)}: give "
                f"{', '.join(wanted)} with tabs between them"
            )
        yield where, cells


def read_csv(path: Path, columns: str) -> Iterator[Record]:
    """Rows of a CSV file whose header names at least `columns` (names with spaces between them).

    Raises DataError, naming the file and the line on which the row begins, for a header without
    one of them, a row with other cells than the header, and broken quotes.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open_input(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
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
