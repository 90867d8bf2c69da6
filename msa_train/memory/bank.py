"""A memory bank on disk: an immutable folder of memory-mapped states, documents and a manifest.

    BANK/manifest.json                        counts, dtype, fingerprints; size and sha256 of files
    BANK/segment-000000/documents.arrow       number, id, title, text, tokens, chunks
    BANK/segment-000000/layer-<l>.k           [C, G, D] pooled keys, raw, in ascending number
    BANK/segment-000000/layer-<l>.v           [C, G, D]
    BANK/segment-000000/layer-<l>.key         [C, G*D] router key vectors

States are float16 unless asked otherwise: bfloat16 is as small, but its router scores are eight
times as coarse, and the gate multiplies their differences by 30 and more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa_train.errors import BankError
from msa_train.memory.documents import StoredDocuments
from msa_train.memory.search import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig
from msa_train.model.resident import ResidentMemory

FORMAT, VERSION = "msa-memory-bank", 1
MANIFEST = "manifest.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def state_file(layer: int, name: str) -> str:
    return f"layer-{layer}.{name}"


class MemoryBank:
    """An opened bank. States are memory-mapped: opening reads none of them."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        (self._segment,) = manifest["segments"]
        folder = path / self._segment["name"]
        self.documents = StoredDocuments(folder / "documents.arrow")
        self._pooled = {layer: self._map(folder, layer) for layer in manifest["layers"]}

    @classmethod
    def open(
        cls, path: Path | str, fingerprint: Mapping[str, str] | None = None, verify: bool = False
    ) -> MemoryBank:
        """The bank at `path`; `fingerprint` of the model that will read it (None: just to look).

        Sizes are always checked, checksums with `verify`. Raises BankError for what is missing,
        unfinished, of a newer format, truncated, changed, or built by other weights.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if fingerprint is not None:
            _check_fingerprint(path, manifest["fingerprint"], fingerprint)
        for segment in manifest["segments"]:
            for name, expected in segment["files"].items():
                _check_file(path / segment["name"] / name, expected, verify)
        return cls(path, manifest)

    def view(self, router: RouterConfig, places: Tensor | None = None) -> MemoryView:
        """The bank, or the documents at `places` [n] (0 is the lowest number) alone.

        A part copies its router keys only (nothing, where its documents are consecutive).
        """
        if places is not None:
            places = places.sort().values
        memory = ResidentMemory(self._pooled, self.documents.chunk_cu, router, places)
        numbers = self.documents.numbers if places is None else self.documents.numbers[places]
        return MemoryView(memory, numbers, self.documents)

    def router_keys(self, layer: int) -> Tensor:
        """[C, G*D] of a router layer, memory-mapped."""
        return self._pooled[layer].key

    def info(self) -> dict[str, Any]:
        """What the manifest says, as plain data; sizes in bytes."""
        manifest, segment = self.manifest, self._segment
        kept = ("format", "version", "created", "dtype", "layers", "chunk_size", "fingerprint")
        return {
            "path": str(self.path),
            **{name: segment[name] for name in ("documents", "chunks", "tokens")},
            "bytes": sum(file["bytes"] for file in segment["files"].values()),
            **{name: manifest[name] for name in kept},
        }

    def _map(self, folder: Path, layer: int) -> Pooled:
        heads, width = self.manifest["kv_heads"], self.manifest["head_dim"]
        shapes = {"k": (heads, width), "v": (heads, width), "key": (heads * width,)}
        chunks, dtype = self._segment["chunks"], DTYPES[self.manifest["dtype"]]
        states = {}
        for name, shape in shapes.items():
            file = folder / state_file(layer, name)
            size = chunks * heads * width
            if file.stat().st_size != size * dtype.itemsize:
                raise BankError(f"{file} does not hold the {chunks} chunks of its manifest")
            flat = torch.empty(0, dtype=dtype)
            if size:
                flat = torch.from_file(str(file), shared=False, size=size, dtype=dtype)
            states[name] = flat.view(chunks, *shape)
        return Pooled(**states)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise BankError(f"{path} is no memory bank: {_why_missing(path)}")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise BankError(f"{file} is damaged ({error}): build the bank again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BankError(f"{file} is not the manifest of a memory bank")
    if manifest.get("version") != VERSION:
        raise BankError(
            f"{path} has bank format {manifest.get('version')}; this version reads {VERSION}: "
            "build the bank again, or use the version that wrote it"
        )
    return manifest


def _why_missing(path: Path) -> str:
    # Only a build that was cut off leaves such a folder; it has never been a bank.
    if ".building-" in path.name:
        return "an unfinished build; delete it and build again"
    if path.is_dir():
        return f"it has no {MANIFEST}"
    left = sorted(path.parent.glob(f".{path.name}.building-*"))
    return f"no such folder; an unfinished build lies in {left[0]}" if left else "no such folder"


def _check_fingerprint(path: Path, built: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for name in sorted(built.keys() | ours.keys()):
        if built.get(name) != ours.get(name):
            raise BankError(
                f"{path} was built by another model: its {name} fingerprint is "
                f"{str(built.get(name))[:12]}, the model's is {str(ours.get(name))[:12]}; "
                "build a bank with these weights"
            )


def _check_file(file: Path, expected: Mapping[str, Any], verify: bool) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise BankError(f"{file} is missing: build the bank again") from None
    if size != expected["bytes"]:
        raise BankError(
            f"{file} has {size} bytes, its manifest says {expected['bytes']}: build the bank again"
        )
    if verify:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise BankError(f"{file} was changed (sha256 {digest[:12]}): build the bank again")
