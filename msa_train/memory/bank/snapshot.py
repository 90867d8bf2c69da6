"""A memory bank as its readers see it: one committed state, whatever a writer does meanwhile."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msa_train.errors import BankError
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.manifest import SEGMENTS, BankManifest
from msa_train.memory.bank.segment import Segment

_NO_NUMBER = (1 << 63) - 1  # the largest int64
_TRIES, _PATIENCE_S = 5, 30.0


def tries() -> Iterator[None]:
    """For whoever opens what a writer may remove after the manifest was read: at least five, and as
    many as half a minute has room for."""
    end = time.monotonic() + _PATIENCE_S
    for made in count():
        if made >= _TRIES and time.monotonic() > end:
            return
        yield


class GenerationGoneError(BankError):
    """A process cannot open a generation that the bank no longer has: open the bank again."""


class BankSnapshot:
    """An opened bank, at the generation of its manifest. States are memory-mapped.

    Documents have a number, which is theirs for ever, and a place 0..n-1 among those that this
    snapshot stores, in ascending number. numbers [n]; live [n]: False for those that were removed;
    removed: their numbers; starts: the place of each segment's first document, and n. reuse: a
    snapshot of the same bank, whose open segments are shared where they are in this one too.
    """

    def __init__(self, path: Path, manifest: BankManifest, reuse: BankSnapshot | None = None):
        self.path, self.manifest = path, manifest
        self.segments = open_segments(path, manifest, () if reuse is None else reuse.segments)
        nothing = np.empty(0, dtype=np.int64)
        numbers = [segment.documents.numbers for segment in self.segments]
        self.numbers = torch.from_numpy(np.concatenate([nothing, *numbers]))
        if bool((self.numbers.diff() <= 0).any()):
            raise BankError(f"{path}: document numbers do not ascend over its segments")
        self.removed = read_removed(path, manifest)
        self.live = torch.ones(len(self.numbers), dtype=torch.bool)
        self.live[self._places(torch.from_numpy(self.removed))] = False
        self.starts = np.cumsum([0, *(len(segment.documents) for segment in self.segments)])

    @classmethod
    def open(
        cls,
        path: Path | str,
        fingerprint: Mapping[str, str] | None = None,
        reuse: BankSnapshot | None = None,
    ) -> BankSnapshot:
        """The newest state of the bank at `path`.

        fingerprint: of the model that will read it (None: no model will). reuse: an older snapshot,
        so that only what changed is opened. Raises BankError for what is missing, unfinished, of a
        newer format, truncated, damaged, or built by other weights.
        """
        path, gone = Path(path), BankError(f"{path} cannot be opened")
        for _ in tries():
            manifest = BankManifest.load(path)
            if fingerprint is not None:
                manifest.check_fingerprint(path, fingerprint)
            try:
                return cls(path, manifest, reuse)
            except BankError as error:
                if BankManifest.load(path) == manifest:
                    raise
                gone = error
        raise gone

    def __len__(self) -> int:
        """Documents that were not removed."""
        return int(self.live.sum())

    def __getitem__(self, number: int) -> StoredDocument:
        """By number. Raises KeyError for one that is not in the bank, or was removed."""
        if (place := self.place_of(number)) is None:
            raise KeyError(number)
        return self.at(place)

    def place_of(self, number: int) -> int | None:
        """None for a number that is not in the bank, or was removed."""
        place = int(np.searchsorted(self.numbers.numpy(), min(max(number, -1), _NO_NUMBER)))
        known = place < len(self.numbers) and int(self.numbers[place]) == number
        return place if known and self.live[place] else None

    def _places(self, numbers: Tensor) -> Tensor:
        """Places of those numbers that are stored."""
        places = torch.searchsorted(self.numbers, numbers)
        places, numbers = (x[places < len(self.numbers)] for x in (places, numbers))
        return places[self.numbers[places] == numbers]

    def at(self, place: int) -> StoredDocument:
        """The stored document at a place 0..n-1."""
        segment = int(np.searchsorted(self.starts, place, "right")) - 1
        return self.segments[segment].documents[place - int(self.starts[segment])]

    def __iter__(self) -> Iterator[StoredDocument]:
        """Documents that were not removed, in ascending number."""
        return (self.at(place) for place in self.live.nonzero().squeeze(1).tolist())

    def numbers_of(self, id: str) -> list[int]:
        """Numbers of the documents with this id that were not removed."""
        found = []
        for start, segment in zip(self.starts, self.segments, strict=False):
            places = (int(start) + row for row in segment.rows_of([id]))
            found += [int(self.numbers[place]) for place in places if self.live[place]]
        return found

    def whole_of(self, number: int) -> list[int]:
        """Numbers, ascending, of all parts of the document that a stored one is, or is a part of.

        Parts share an id; those of a document without one follow each other. Raises KeyError for
        a number that is not in the bank, BankError for a document that is damaged.
        """
        document = self[number]
        if not document.part:
            return [number]
        if document.id:
            return [each for each in self.numbers_of(document.id) if self[each].part]
        before, after = (self._neighbours(document, step) for step in (-1, 1))
        return [*reversed(before), number, *after]

    def _neighbours(self, document: StoredDocument, step: int) -> list[int]:
        """Numbers of the parts before (-1) or after (1) a part of a document without an id."""
        found = []
        while (place := self.place_of(document.number + step)) is not None:
            other = self.at(place)
            if other.id or other.part != document.part + step or not other.part:
                break
            found.append(other.number)
            document = other
        return found

    def router_keys(self, layer: int) -> Tensor:
        """[C, G*D] of a router layer, including those of removed documents."""
        keys = [segment.pooled[layer].key for segment in self.segments]
        return keys[0] if len(keys) == 1 else torch.cat(keys)

    @property
    def chunk_cu(self) -> Tensor:
        """[n+1] cumulative number of chunks."""
        counts = [torch.from_numpy(segment.documents.chunks) for segment in self.segments]
        nothing = torch.zeros(1, dtype=torch.int64)
        return torch.cat([nothing, *counts]).cumsum(0)

    def info(self) -> dict[str, Any]:
        """Counts, sizes in bytes, and origin, as plain data."""
        manifest, form = self.manifest, self.manifest.form
        return {
            "path": str(self.path),
            "documents": len(self),
            "removed": len(self.numbers) - len(self),
            "next_number": manifest.next_number,
            **{name: manifest.total(name) for name in ("chunks", "tokens", "bytes")},
            "segments": len(manifest.segments),
            "generation": manifest.generation,
            "created": manifest.created,
            "dtype": form.dtype,
            "layers": list(form.layers),
            "chunk_size": form.chunk_size,
            "fingerprint": form.fingerprint,
        }


def open_segments(path: Path, manifest: BankManifest, known: Iterable[Segment]) -> list[Segment]:
    """Those of a manifest; known: open ones, which are shared where they are among them."""
    held = {segment.folder: segment for segment in known}
    return [
        old if (old := held.get(path / SEGMENTS / entry.name)) and old.entry == entry
        else Segment(path / SEGMENTS, entry, manifest.form)
        for entry in manifest.segments
    ]  # fmt: skip


def read_removed(path: Path, manifest: BankManifest) -> np.ndarray:
    """Numbers of removed documents, ascending."""
    if manifest.removed is None:
        return np.empty(0, dtype=np.int64)
    file = path / manifest.removed.name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BankError(
            f"{file} cannot be read ({error.strerror}): restore it, or removed documents would "
            "come back"
        ) from error
    if hashlib.sha256(data).hexdigest() != manifest.removed.sha256:
        raise BankError(f"{file} is damaged (its checksum differs): restore it")
    return np.frombuffer(data, dtype="<i8").astype(np.int64)
