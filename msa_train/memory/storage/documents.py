"""The documents of a segment as an Arrow IPC file: written in batches, read memory-mapped."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.schema import Document
from msa_train.durable import NewFile
from msa_train.errors import BankError

DOCUMENTS = "documents.arrow"
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),  # JSON
        ("part", pa.int32()),
        ("added", pa.int64()),
        ("tokens", pa.int64()),
        ("chunks", pa.int64()),
        ("crc", pa.uint32()),  # of all that stands before it
    ]
)
COUNTS = ("number", "tokens", "chunks")
_ROWS = 4096  # documents per record batch


@dataclass(frozen=True)
class StoredDocument(Document):
    """A document as a bank keeps it.

    metadata: any JSON. part: 0 for a whole document, 1, 2, ... for the parts of one that was split;
    they share its id. added: milliseconds since 1970, UTC.
    """

    metadata: Any = field(default=None, hash=False)
    part: int = 0
    added: int = 0

    def to_line(self) -> dict[str, Any]:
        """As a corpus has it, with its number."""
        kept = {"id": self.id, "title": self.title, "text": self.text, "number": self.number}
        if self.part:
            kept["part"] = self.part
        return kept if self.metadata is None else {**kept, "metadata": self.metadata}


class DocumentWriter:
    """Appends documents to an Arrow IPC file; holds at most one record batch."""

    def __init__(self, path: Path):
        self.file = NewFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self.file, "w"), SCHEMA)
        self._rows: list[tuple] = []

    def append(self, document: Document, tokens: int, chunks: int) -> None:
        stored = isinstance(document, StoredDocument)
        metadata = document.metadata if stored else None
        row = (
            document.number, document.id, document.title, document.text,
            "" if metadata is None else json.dumps(metadata, ensure_ascii=False, sort_keys=True),
            document.part if stored else 0, document.added if stored else 0, tokens, chunks,
        )  # fmt: skip
        self._rows.append((*row, _crc(row)))
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


def _crc(row: tuple) -> int:
    return zlib.crc32(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def counts_crc(columns: dict[str, np.ndarray]) -> int:
    """Of the columns that are read when a bank is opened."""
    crc = 0
    for name in COUNTS:
        crc = zlib.crc32(np.ascontiguousarray(columns[name], dtype="<i8").tobytes(), crc)
    return crc


class DocumentTable:
    """Documents by row, read from the mapped file when asked for.

    numbers, tokens, chunks [n] int64 arrays. Every document is compared with its checksum.
    """

    def __init__(self, path: Path, expected_crc: int):
        self._path = path
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if self._table.schema != SCHEMA:
                names = self._table.schema.names
                raise BankError(f"{path} has columns {names}, not {SCHEMA.names}")
            columns = {name: self._table[name].to_numpy().copy() for name in COUNTS}
        except (pa.ArrowException, OSError) as error:
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
        parsed = json.loads(metadata) if metadata else None
        return StoredDocument(number, text, id, title, parsed, piece, added)

    def _damaged(self, row: int, why: str) -> BankError:
        return BankError(
            f"document {self.numbers[row]} in {self._path} is damaged ({why}): restore the file"
        )
