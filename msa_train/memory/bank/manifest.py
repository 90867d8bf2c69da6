"""The manifest: the one file that says what a bank holds. Replacing it IS the commit.

BANK/manifest.json               format, form, generation, segments with sizes and checksums
BANK/segments/<name>/            immutable, see segment.py
BANK/removed-<generation>.i64    numbers of removed documents, ascending (no file where none are)
BANK/writer.lock                 names the writer, see lock.py
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline import files
from msa_train.errors import BankError

FORMAT, VERSION = "msa-memory-bank", 3
READABLE = (2, 3)  # version 2 kept a split document's metadata with each of its parts
MANIFEST = "manifest.json"
SEGMENTS = "segments"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BankForm:
    """Shape, dtype and origin of a bank's states, the same in all its segments.

    dtype: float16 by default. bfloat16 is as small, but its router scores are eight times as
    coarse, and the gate multiplies their differences by 30 and more. fingerprint: a hash for each
    thing that the states depend on (model, config, tokenizer), by name.
    """

    dtype: str
    layers: tuple[int, ...]  # router layers
    kv_heads: int
    head_dim: int
    chunk_size: int
    fingerprint: dict[str, str]
    reads: tuple[int, ...] | None = None  # layers with K and V (None: all)
    key_heads: int | None = None  # of router keys (None: kv_heads)
    key_head_dim: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BankError(f"a bank's dtype is {self.dtype!r}: give one of {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Of a chunk's K, V and router key in one layer."""
        heads = self.kv_heads if self.reads is None or layer in self.reads else 0
        width = (self.key_heads or self.kv_heads) * (self.key_head_dim or self.head_dim)
        return {"k": (heads, self.head_dim), "v": (heads, self.head_dim), "key": (width,)}

    def bytes(self, layer: int) -> dict[str, int]:
        """Of the same, in order."""
        size = self.torch_dtype.itemsize
        return {kind: math.prod(shape) * size for kind, shape in self.shapes(layer).items()}

    def to_json(self) -> dict[str, Any]:
        """What has its default is left out: earlier versions read the banks they could build."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BankForm:
        lists = {name: tuple(data[name]) for name in ("layers", "reads") if name in data}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as it was sealed. first, last: its lowest and highest document number."""

    name: str
    first: int
    last: int
    documents: int
    chunks: int
    tokens: int
    counts_crc: int  # of document numbers, token and chunk counts, which opening a bank reads
    files: dict[str, StoredFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SegmentEntry:
        files = {name: StoredFile(**file) for name, file in data.pop("files").items()}
        return cls(**data, files=files)


@dataclass(frozen=True)
class Removed:
    """The file of the numbers that were removed from the listed segments."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class BankManifest:
    """One committed state of a bank. next_number: of the next document; never given twice."""

    form: BankForm
    created: str
    generation: int = 0
    next_number: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    removed: Removed | None = None

    def total(self, count: str) -> int:
        """Over all segments; count: documents, chunks, tokens or bytes."""
        return sum(getattr(entry, count) for entry in self.segments)

    def following(self, **changes: Any) -> BankManifest:
        return replace(self, generation=self.generation + 1, **changes)

    def save(self, bank: Path) -> None:
        body = json.dumps({"format": FORMAT, "version": VERSION, **self.to_json()}, indent=1)
        # A line of its own, so that it covers exactly the bytes before it.
        digest = hashlib.sha256(body.encode()).hexdigest()
        files.replace_file(bank / MANIFEST, f"{body}\n{digest}\n".encode())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "form": self.form.to_json()}

    @classmethod
    def load(cls, bank: Path) -> BankManifest:
        """Raises BankError where it is missing, of another format, or damaged."""
        file = bank / MANIFEST
        try:
            text = file.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise BankError(f"{bank} is no memory bank: {_why_missing(bank)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BankError(f"{file} cannot be read: {error}") from error
        body, _, digest = text.rstrip("\n").rpartition("\n")
        whole = hashlib.sha256(body.encode()).hexdigest() == digest
        _check_version(file, body if whole else text, whole)
        return cls.from_json(json.loads(body))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BankManifest:
        return cls(
            form=BankForm.from_json(data["form"]),
            created=data["created"],
            generation=data["generation"],
            next_number=data["next_number"],
            segments=tuple(map(SegmentEntry.from_json, data["segments"])),
            removed=Removed(**data["removed"]) if data["removed"] else None,
        )

    def check_fingerprint(self, bank: Path, ours: Mapping[str, str]) -> None:
        built = self.form.fingerprint
        for name in sorted(built.keys() | ours.keys()):
            if built.get(name) != ours.get(name):
                raise BankError(
                    f"{bank} was built by another model: its {name} fingerprint is "
                    f"{str(built.get(name))[:12]}, the model's is {str(ours.get(name))[:12]}; "
                    "build a bank with these weights"
                )


def _check_version(file: Path, text: str, whole: bool) -> None:
    """Names another version before damage: it may keep its digest elsewhere."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        found = {}
    if isinstance(found, dict) and found.get("format") == FORMAT:
        if found.get("version") not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise BankError(
                f"{file.parent} has bank format {found.get('version')}; this version reads "
                f"{readable}: build the bank again, or use the version that wrote it"
            )
        if whole:
            return
        raise BankError(f"{file} is damaged (its checksum differs): restore it, or build again")
    raise BankError(f"{file} is not the manifest of a memory bank, or is damaged")


def _why_missing(path: Path) -> str:
    if path.is_dir():
        return f"it has no {MANIFEST}"
    building = building_name(path)
    if building.is_dir():
        return f"its build is not finished ({building}); build again to take it up"
    return "it is a file; give a bank's folder" if path.is_file() else "no such folder"


def building_name(path: Path) -> Path:
    """Where the bank `path` lies while it is being built."""
    return path.with_name(f".{path.name}.building")
