"""Documents as a bank keeps them: an Arrow IPC file per segment, read memory-mapped."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.files import NewFile
from data_pipeline.schema import Document
from msa_train.errors import BankError

DOCUMENTS = "documents.arrow"
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),  # JSON, or AT_FIRST_PART
        ("part", pa.int32()),
        ("added", pa.int64()),
        ("tokens", pa.int64()),
        ("chunks", pa.int64()),
        ("crc", pa.uint32()),  # of the columns before it
    ]
)
COUNTS = ("number", "tokens", "chunks")
_ROWS = 4096  # documents per record batch
# Two documents are the same where these agree. Left out: the time of adding, and what follows from
# the text.
GIVEN = ("number", "id", "title", "text", "metadata", "part")
AT_FIRST_PART = "^"  # no JSON: the metadata is that of the same document's first part
METADATA_BYTES = 1 << 16  # of a document, as JSON: filters read all of them
_metadata = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


@dataclass(frozen=True)
class StoredDocument(Document):
    """A document as a bank keeps it.

    id: "" where none was given; then its number alone names it. metadata: any JSON. part: 0 for a
    whole document; 1, 2, ... for the parts of a split one, which share its id. added: milliseconds
    since 1970, UTC.
    """

    metadata: Any = field(default=None, hash=False)
    part: int = 0
    added: int = 0

    def to_line(self) -> dict[str, Any]:
        """As a line of a corpus, with its number."""
        kept = {"id": self.id, "title": self.title, "text": self.text, "number": self.number}
        if self.part:
            kept["part"] = self.part
        if self.added:
            kept["added"] = self.added
        return kept if self.metadata is None else {**kept, "metadata": self.metadata}


def text_of(title: str, text: str) -> str:
    """The text that is encoded: a document that has only a title consists of it, as in training."""
    return text if text.strip() else title


def metadata_bytes(metadata: Any) -> int:
    """As JSON. Raises ValueError for NaN and infinity, which are not JSON: a server could not
    return them; RecursionError for what is nested too deep."""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    return len(text.encode("utf-8", "surrogatepass"))


class StoredOnce:
    """Rows of a segment in their order; a split document's metadata stands at its first part."""

    def __init__(self) -> None:
        self._rows = 0
        self._first: tuple[int, str, str] | None = None  # row, id, metadata of the last first part

    def row(self, document: Document) -> tuple[int, str, str, str, str, int]:
        """Values of the columns GIVEN as they are stored."""
        *named, metadata, part = given_of(document)
        whole = self._rows - part + 1, document.id, metadata
        if part == 1:
            self._first = whole
        elif part > 1 and metadata and whole == self._first:
            metadata = AT_FIRST_PART
        self._rows += 1
        return (*named, metadata, part)


class DocumentWriter:
    """Appends documents to an Arrow IPC file; holds at most one record batch."""

    def __init__(self, path: Path):
        self.file = NewFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self.file, "w"), SCHEMA)
        self._rows: list[tuple] = []
        self._stored = StoredOnce()

    def append(self, document: Document, tokens: int, chunks: int) -> None:
        row = (*self._stored.row(document), getattr(document, "added", 0), tokens, chunks)
        try:
            self._rows.append((*row, _crc(row)))
        except UnicodeEncodeError as error:
            raise BankError(
                f"document {document.number} ({document.id!a}) has half a surrogate pair in its "
                f"text, title, id or metadata ({error.object[error.start]!a}): correct it"
            ) from None
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self.file.close()

    def _flush(self) -> None:
        columns = [list(column) for column in zip(*self._rows, strict=True)]
        self._writer.write(pa.record_batch(columns, SCHEMA))
        self._rows = []


def given_of(document: Document) -> tuple[int, str, str, str, str, int]:
    """Values of the columns GIVEN."""
    metadata = getattr(document, "metadata", None)
    return (
        document.number, document.id, document.title, document.text,
        "" if metadata is None else _metadata(metadata), getattr(document, "part", 0),
    )  # fmt: skip


def _crc(row: tuple) -> int:
    """Checksum of the row as a JSON list (formatted here: json.dumps takes three times as long)."""
    number, id, title, text, metadata, *rest = row
    strings = f"{quoted(id)}, {quoted(title)}, {quoted(text)}, {quoted(metadata)}"
    line = f"[{number}, {strings}, {', '.join(map(str, rest))}]"
    return zlib.crc32(line.encode())


def counts_crc(columns: dict[str, np.ndarray]) -> int:
    """Checksum of the columns that are read when a bank is opened."""
    crc = 0
    for name in COUNTS:
        crc = zlib.crc32(np.ascontiguousarray(columns[name], dtype="<i8").tobytes(), crc)
    return crc


class DocumentTable:
    """Documents by row, read from the mapped file and compared with their checksums when used.

    numbers, tokens, chunks [n] int64 arrays. Raises BankError for what is damaged.
    """

    def __init__(self, path: Path, expected_crc: int):
        self._path = path
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if self._table.schema != SCHEMA:
                names = self._table.schema.names
                raise BankError(f"{path} has columns {names}, not {SCHEMA.names}")
            self._table.validate()  # changed lengths could point outside the file
            columns = {name: self._table[name].to_numpy().copy() for name in COUNTS}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BankError(f"{path} is no readable Arrow file: {error}; restore it") from error
        if counts_crc(columns) != expected_crc:
            raise BankError(f"{path} is damaged (numbers or lengths changed): restore it")
        self.numbers, self.tokens, self.chunks = (columns[name] for name in COUNTS)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> StoredDocument:
        part = self._table.slice(row, 1)
        try:
            part.validate(full=True)
            values = tuple(part[name][0].as_py() for name in SCHEMA.names)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self._damaged(row, str(error)) from error
        if _crc(values[:-1]) != values[-1]:
            raise self._damaged(row, "its checksum differs")
        number, id, title, text, metadata, piece, added = values[:7]
        if metadata == AT_FIRST_PART:
            parsed = self[row - piece + 1].metadata
        else:
            parsed = json.loads(metadata) if metadata else None
        return StoredDocument(number, text, id, title, parsed, piece, added)

    @cached_property
    def metadata_rows(self) -> np.ndarray:
        """[n] the row that holds each document's metadata; unchecked, as `column`."""
        rows, parts = np.arange(len(self)), self._table["part"].to_numpy()
        elsewhere = pc.equal(self._table["metadata"], AT_FIRST_PART).to_numpy()
        rows[elsewhere] -= parts[elsewhere] - 1
        return rows

    def damaged(self) -> list[str]:
        """Compares every document with its checksum; one message per damaged document."""
        problems = []
        for start in range(0, len(self), _ROWS):
            part = self._table.slice(start, _ROWS)
            suspects = range(start, start + len(part))
            try:
                part.validate(full=True)
                rows = zip(*(part[name].to_pylist() for name in SCHEMA.names), strict=True)
                whole = [_crc(row[:-1]) == row[-1] for row in rows]
                suspects = [row for row, good in zip(suspects, whole, strict=True) if not good]
            except (pa.ArrowException, UnicodeDecodeError):
                pass  # at least one row is damaged: look at each
            for row in suspects:
                try:
                    self[row]
                except BankError as error:
                    problems.append(str(error))
        return problems

    def holds(self, documents: Sequence[Document]) -> bool:
        """Whether it holds just these documents, apart from when they were added."""
        if len(documents) != len(self):
            return False
        columns = zip(*map(StoredOnce().row, documents), strict=True)
        return all(
            self._table[name].equals(pa.chunked_array([pa.array(column, SCHEMA.field(name).type)]))
            for name, column in zip(GIVEN, columns, strict=True)
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, unchecked: see Segment.check_documents."""
        return self._table[name]

    def _damaged(self, row: int, why: str) -> BankError:
        return BankError(
            f"document {self.numbers[row]} in {self._path} is damaged ({why}): restore the file"
        )
