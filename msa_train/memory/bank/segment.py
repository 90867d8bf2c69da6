"""A segment: documents of ascending number and their pooled states, written once, never changed.

documents.arrow     number, id, title, text, metadata, part, added, tokens, chunks, checksum
ids.u64             [n, 2] digest of each id and its row, ascending: finds ids without the texts
layer-<l>.k, .v     [C, G, D] pooled keys and values, raw, in ascending number
layer-<l>.key       [C, G*D] router key vectors
layer-<l>.crc       [n] checksum of each document's rows of k and v
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipeline import files
from data_pipeline.files import NewFile
from data_pipeline.schema import Document
from msa_train.errors import BankError
from msa_train.memory.bank.documents import (
    DOCUMENTS,
    DocumentTable,
    DocumentWriter,
    counts_crc,
)
from msa_train.memory.bank.manifest import BankForm, SegmentEntry, StoredFile
from msa_train.memory.bank.state_checks import StateChecks, raw_bytes, rows_crc
from msa_train.model.attention import Pooled

IDS = "ids.u64"
STATES = ("k", "v", "key")  # the fields of Pooled


def id_digest(id: str) -> int:
    return int.from_bytes(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


@dataclass(frozen=True)
class EncodedBatch:
    """Documents of ascending number and their pooled states, as a segment is written.

    tokens, chunks [n]: how many each document has; pooled: router layer -> states of all chunks.
    """

    documents: list[Document]
    tokens: Tensor
    chunks: Tensor
    pooled: dict[int, Pooled]


@dataclass(frozen=True)
class Target:
    """Where the segments of one commit are written: a folder of segments, and their form."""

    folder: Path
    form: BankForm
    generation: int

    def segment(self, first: int) -> SegmentWriter:
        """The writer of the segment whose first document is number `first`."""
        return SegmentWriter(self.folder, f"{self.generation:06}-{first:012}", self.form)


class SegmentWriter:
    """Appends encoded documents of ascending number; `seal` makes the folder a segment."""

    def __init__(self, folder: Path, name: str, form: BankForm):
        self.name, self._form = name, form
        self._partial, self._target = folder / f".{name}", folder / name
        files.make_folder(self._partial)
        self._documents = DocumentWriter(self._partial / DOCUMENTS)
        self._files = {
            state_file(layer, kind): NewFile(self._partial / state_file(layer, kind))
            for layer in form.layers
            for kind in (*STATES, "crc")
        }
        self._ids: list[int] = []
        self._counts: list[np.ndarray] = []  # [3, documents] of each batch

    @property
    def documents(self) -> int:
        return len(self._ids)

    def append(self, batch: EncodedBatch) -> None:
        rows = zip(batch.documents, batch.tokens.tolist(), batch.chunks.tolist(), strict=True)
        for document, tokens, chunks in rows:
            self._documents.append(document, tokens, chunks)
            self._ids.append(id_digest(document.id))
        numbers = torch.tensor([document.number for document in batch.documents])
        self._counts.append(torch.stack([numbers, batch.tokens, batch.chunks]).numpy())
        bounds = np.concatenate([[0], batch.chunks.cumsum(0).numpy()])
        for layer in self._form.layers:
            states = batch.pooled[layer]
            raw = {kind: self._bytes(getattr(states, kind), layer, kind) for kind in STATES}
            for kind, data in raw.items():
                self._files[state_file(layer, kind)].write(data)
            checksums = rows_crc(raw["k"], raw["v"], bounds * self._form.bytes(layer)["k"])
            self._files[state_file(layer, "crc")].write(checksums)

    def seal(self) -> SegmentEntry:
        """Syncs and renames it; it is part of a bank once a manifest lists it."""
        numbers, tokens, chunks = np.concatenate(self._counts, axis=1)
        ids = np.array(self._ids, dtype="<u8")
        order = np.argsort(ids, kind="stable")
        with NewFile(self._partial / IDS) as file:
            file.write(np.stack([ids[order], order.astype("<u8")], axis=1))
        self._documents.close()
        for each in self._files.values():
            each.close()
        written = {IDS: file, DOCUMENTS: self._documents.file, **self._files}
        files.sync(self._partial)
        files.rename(self._partial, self._target)
        return SegmentEntry(
            self.name,
            int(numbers[0]),
            int(numbers[-1]),
            len(numbers),
            int(chunks.sum()),
            int(tokens.sum()),
            counts_crc({"number": numbers, "tokens": tokens, "chunks": chunks}),
            {name: StoredFile(each.bytes, each.sha256) for name, each in sorted(written.items())},
        )

    def abandon(self) -> None:
        """Closes its files, which the bank's next writer removes."""
        for file in (self._documents.file, *self._files.values()):
            with contextlib.suppress(OSError):
                file.close()

    def _bytes(self, states: Tensor, layer: int, kind: str) -> memoryview:
        if not states.isfinite().all():
            raise BankError(
                f"{kind} of layer {layer} is not finite as {self._form.dtype}: "
                "the weights are broken, or the states need the dtype float32"
            )
        assert states.dtype == self._form.torch_dtype
        return raw_bytes(states)


def state_file(layer: int, kind: str) -> str:
    return f"layer-{layer}.{kind}"


class Segment:
    """An opened segment. States are read when they are used.

    Every file stays mapped, so a reader is not disturbed when a writer removes the segment. Raises
    BankError for files that are missing, cut, damaged or cannot be mapped.

    pooled: router layer -> states, memory-mapped; chunk_cu [n+1] of its documents.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, form: BankForm):
        self.entry, self.folder, self.form = entry, folder / entry.name, form
        try:
            self._open()
        except BankError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # as numpy and torch fail to map
            raise BankError(f"{self.folder} cannot be read: {error}") from error
        self._documents_checked = False
        self._checks: dict[int, StateChecks] = {}

    def _open(self) -> None:
        for name, expected in self.entry.files.items():
            _check_size(self.folder / name, expected)
        self.documents = DocumentTable(self.folder / DOCUMENTS, self.entry.counts_crc)
        self.chunk_cu = torch.from_numpy(np.concatenate([[0], self.documents.chunks.cumsum()]))
        self.pooled = {layer: self._map(layer) for layer in self.form.layers}
        self._raw_documents, self._raw_ids = (
            np.memmap(self.folder / name, np.uint8, "r") for name in (DOCUMENTS, IDS)
        )
        self._crc = {
            layer: np.memmap(self.folder / state_file(layer, "crc"), "<u4", "r")
            for layer in self.form.layers
        }

    @cached_property
    def identity(self) -> str:
        """The same for the same content at the same place, whoever opened it."""
        digests = [file.sha256 for _, file in sorted(self.entry.files.items())]
        return f"{self.folder.resolve()}:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"

    @cached_property
    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] digests, ascending, and their rows; checked: a wrong row would go unnoticed."""
        self._check(IDS, self._raw_ids)
        digests, rows = self._raw_ids.view("<u8").reshape(-1, 2).T
        return np.ascontiguousarray(digests), rows  # or every search would copy them

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Rows of the documents that have one of these ids, id by id; those of one ascending (the
        parts of a document that was split). A document without an id ("") is never among them."""
        digests, rows = self.ids
        ids = [id for id in ids if id]
        wanted = np.array([id_digest(id) for id in ids], dtype=np.uint64)
        first = np.searchsorted(digests, wanted, "left")
        last = np.searchsorted(digests, wanted, "right")
        found = []
        for place in np.flatnonzero(first < last):
            there = rows[first[place] : last[place]].astype(np.int64).tolist()
            found += [row for row in there if self.documents[row].id == ids[place]]
        return found

    def check_documents(self) -> None:
        """Reads the whole documents' file, the first time only. Raises BankError if it was changed.

        Needed before a column is used as a whole: single documents have checksums of their own.
        """
        if not self._documents_checked:
            self._check(DOCUMENTS, self._raw_documents)
            self._documents_checked = True

    def check_keys(self, layer: int) -> None:
        """Reads all router keys of a layer. Raises BankError if they were changed."""
        self._check(state_file(layer, "key"), raw_bytes(self.pooled[layer].key))

    def _check(self, name: str, data: memoryview | np.ndarray) -> None:
        if hashlib.sha256(data).hexdigest() != self.entry.files[name].sha256:
            raise BankError(f"{self.folder / name} was changed: restore it, or build again")

    def check_states(self, layer: int, rows: Tensor) -> None:
        """Compares K and V of some documents with their checksums, each document once.

        Raises BankError for a document whose states were changed.
        """
        row = self._state_checks(layer).changed(rows)
        if row is not None:
            number = self.documents.numbers[row]
            raise BankError(
                f"{self.folder}: K or V of document {number} in layer {layer} was changed: "
                "restore the segment, or build again"
            )

    def changed_states(self, layer: int) -> list[int]:
        """Numbers of all documents whose K or V differ from their checksums."""
        return self.documents.numbers[self._state_checks(layer).all_changed()].tolist()

    def _state_checks(self, layer: int) -> StateChecks:
        if layer not in self._checks:
            given = self.pooled[layer], self.chunk_cu, self._crc[layer]
            self._checks[layer] = StateChecks(*given)
        return self._checks[layer]

    def _map(self, layer: int) -> Pooled:
        dtype, states = self.form.torch_dtype, {}
        for kind, shape in self.form.shapes(layer).items():
            flat, size = torch.empty(0, dtype=dtype), self.entry.chunks * math.prod(shape)
            if size:
                file = str(self.folder / state_file(layer, kind))
                flat = torch.from_file(file, shared=False, size=size, dtype=dtype)
            states[kind] = flat.view(self.entry.chunks, *shape)
        return Pooled(**states)


def _check_size(file: Path, expected: StoredFile) -> None:
    size = file.stat().st_size if file.is_file() else None
    if size is None:
        raise BankError(f"{file} is missing: restore it, or build the bank again")
    if size != expected.bytes:
        raise BankError(
            f"{file} has {size} bytes, its manifest says {expected.bytes}: restore it, or build "
            "the bank again"
        )
