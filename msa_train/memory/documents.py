"""The documents of a bank as an Arrow IPC file: written in batches, read memory-mapped."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from data_pipeline.schema import Document
from msa_train.errors import BankError

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int64()),
        ("chunks", pa.int64()),
    ]
)
_ROWS = 4096  # documents per record batch


class DocumentWriter:
    """Appends documents to an Arrow IPC file; holds at most one record batch."""

    def __init__(self, path: Path):
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)
        self._rows: list[tuple] = []

    def append(self, document: Document, tokens: int, chunks: int) -> None:
        self._rows.append(
            (document.number, document.id, document.title, document.text, tokens, chunks)
        )
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        self._writer.write(
            pa.record_batch([list(column) for column in zip(*self._rows, strict=True)], SCHEMA)
        )
        self._rows = []


class StoredDocuments:
    """Documents by number, read from the mapped file when asked for."""

    def __init__(self, path: Path):
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise BankError(f"{path} is no readable Arrow file: {error}; build again") from error
        if self._table.schema != SCHEMA:
            raise BankError(f"{path} has columns {self._table.schema.names}, not {SCHEMA.names}")
        self.numbers, self.tokens, self.chunks = (
            torch.from_numpy(self._table[name].to_numpy().copy())
            for name in ("number", "tokens", "chunks")
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Document:
        """Raises KeyError for a number that is not in the bank."""
        place = int(torch.searchsorted(self.numbers, number))
        if place == len(self) or int(self.numbers[place]) != number:
            raise KeyError(number)
        return self.at(place)

    def at(self, place: int) -> Document:
        """The document at a place 0..n-1, in ascending number."""
        row = {name: self._table[name][place].as_py() for name in ("text", "id", "title")}
        return Document(int(self.numbers[place]), **row)

    @property
    def chunk_cu(self) -> Tensor:
        """[n+1] cumulative number of chunks."""
        return torch.nn.functional.pad(self.chunks.cumsum(0), (1, 0))
