"""The manifest: the one file that says what a bank holds; its replacement IS the commit.

BANK/manifest.json               format, form, generation, segments with sizes and checksums
BANK/segments/<name>/            immutable, see segments.py
BANK/removed-<generation>.i64    numbers of removed documents, ascending (none: no file)
BANK/writer.lock                 who writes, see lock.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline import files
from msa_train.errors import BankError

FORMAT, VERSION = "msa-memory-bank", 2
MANIFEST = "manifest.json"
SEGMENTS = "segments"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BankForm:
    """What the states of a bank are, the same in all its segments.

    dtype of the stored states: float16 unless asked otherwise; bfloat16 is as small, but its router
    scores are eight times as coarse, and the gate multiplies their differences by 30 and more.
    fingerprint: names of what the states depend on (model, config, tokenizer) -> hash.
    """

    dtype: str
    layers: tuple[int, ...]  # router layers
    kv_heads: int
    head_dim: int
    chunk_size: int
    fingerprint: dict[str, str]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BankError(f"a bank's dtype is {self.dtype!r}: give one of {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def width(self) -> int:
        """Values of a chunk in one layer's K, V or router keys."""
        return self.kv_heads * self.head_dim


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
    counts_crc: int  # of the numbers, token and chunk counts, which are read when a bank is opened
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
    """The file of removed numbers of segments that are still there."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class BankManifest:
    """One committed state of a bank. next_number: given to the next document, never twice."""

    form: BankForm
    created: str
    generation: int = 0
    next_number: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    removed: Removed | None = None

    def following(self, **changes: Any) -> BankManifest:
        return replace(self, generation=self.generation + 1, **changes)

    def save(self, bank: Path) -> None:
        body = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)
        # The digest is a line of its own, so that it is of the very bytes before it.
        digest = hashlib.sha256(body.encode()).hexdigest()
        files.replace_file(bank / MANIFEST, f"{body}\n{digest}\n".encode())

    @classmethod
    def load(cls, bank: Path) -> BankManifest:
        """Raises BankError for what is missing, of another format, or damaged."""
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
        return cls._from_json(json.loads(body))

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> BankManifest:
        form = data["form"]
        return cls(
            form=BankForm(**{**form, "layers": tuple(form["layers"])}),
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
    """Another version may keep its digest elsewhere: it is named before damage is."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        found = {}
    if isinstance(found, dict) and found.get("format") == FORMAT:
        if found.get("version") != VERSION:
            raise BankError(
                f"{file.parent} has bank format {found.get('version')}; this version reads "
                f"{VERSION}: build the bank again, or use the version that wrote it"
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
    """Where the bank `path` lies until its first build is complete."""
    return path.with_name(f".{path.name}.building")
