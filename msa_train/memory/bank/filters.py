"""Which documents a question may be answered from: by number, id, metadata, time of adding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from msa_train.errors import BankError
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot

_KEPT = 32  # results per segment, which stay valid: segments never change
_results: WeakKeyDictionary[Segment, dict[bytes, np.ndarray]] = WeakKeyDictionary()
_PATTERNS = 8  # searched one by one; where there are more, only the key is searched
_EXACT = 1e15  # below it a number has one decimal form, whether it is stored as 7 or as 7.0


@dataclass(frozen=True)
class DocumentFilter:
    """Conditions, which must all hold; without any, every document passes.

    ids, numbers: the document's is one of these. metadata: pairs of a key and the values allowed
    under it; a dotted key that is not itself a key leads into nested objects, and of a list an
    element is enough. Numbers are compared by value, all else as JSON. added_after, added_before:
    milliseconds since 1970, exclusive.
    """

    ids: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None
    metadata: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    added_after: int | None = None
    added_before: int | None = None

    @classmethod
    def from_json(cls, data: Any) -> DocumentFilter:
        """As a request gives it. Raises BankError naming what is unknown or of a wrong type."""
        if not isinstance(data, Mapping):
            raise BankError(f"filter is {_shown(data)}: give an object")
        known = ("ids", "numbers", "metadata", "added_after", "added_before")
        if unknown := [key for key in data if key not in known]:
            raise BankError(f"filter has an unknown key {unknown[0]!r}: give {', '.join(known)}")
        given = {key: value for key, value in data.items() if value is not None}
        return cls(
            _listed(given, "ids", str, "strings"),
            _listed(given, "numbers", int, "whole numbers"),
            tuple(_conditions(given.get("metadata", {}))),
            _time(given, "added_after"),
            _time(given, "added_before"),
        )

    def allowed(self, bank: BankSnapshot) -> Tensor:
        """[n] bool over bank.numbers, False for removed documents.

        Metadata and times are read from the documents' columns, once per segment and condition.
        Raises BankError where those were changed on disk.
        """
        found = bank.live.clone()
        if self.numbers is not None:
            found &= torch.isin(bank.numbers, torch.tensor(self.numbers, dtype=torch.int64))
        if self.ids is not None or self._reads:
            for segment, (start, end) in zip(bank.segments, pairwise(bank.starts), strict=True):
                part = found[start:end]
                if bool(part.any()):
                    part &= torch.from_numpy(self._in_segment(segment))
        return found

    @property
    def _reads(self) -> bool:
        return bool(self.metadata) or self.added_after is not None or self.added_before is not None

    def _in_segment(self, segment: Segment) -> np.ndarray:
        """[n] bool over the documents of a segment."""
        found = np.ones(segment.entry.documents, dtype=bool)
        if self.ids is not None:
            found[:] = False
            found[segment.rows_of(self.ids)] = True
        if self._reads and found.any():
            segment.check_documents()
            if self.added_after is not None or self.added_before is not None:
                added = segment.documents.column("added").to_numpy()
                if self.added_after is not None:
                    found &= added > self.added_after
                if self.added_before is not None:
                    found &= added < self.added_before
            for key, alternatives in self.metadata:
                found &= _with_metadata(segment, key, alternatives)
        return found


def remembered(segment: Segment, condition: Any, read: Callable[[], np.ndarray]) -> np.ndarray:
    """[n] bool of a segment's documents as `read` gives it, read once while it is kept. condition:
    what it was read for, as JSON."""
    results = _results.setdefault(segment, {})
    # A digest, because a condition can be as large as a request.
    digest = hashlib.sha256(json.dumps(condition, sort_keys=True).encode()).digest()
    found = results.get(digest)
    if found is None:
        found = read()
        while len(results) >= _KEPT:
            results.pop(next(iter(results)), None)
        results[digest] = found
    return found


def _with_metadata(segment: Segment, key: str, alternatives: tuple[Any, ...]) -> np.ndarray:
    def read() -> np.ndarray:
        found = _matching(segment.documents.column("metadata"), key, alternatives)
        return found[segment.documents.metadata_rows]

    return remembered(segment, ["metadata", key, alternatives], read)


def _matching(column: pa.ChunkedArray, key: str, alternatives: tuple[Any, ...]) -> np.ndarray:
    """[n] bool. Parses only metadata in which a pattern occurs, and each distinct text once."""
    candidates = None
    wanted = set(map(_comparable, alternatives))
    patterns = {p for value in alternatives for p in _patterns(key, value)}
    if len(patterns) > _PATTERNS:
        patterns = set(_patterns(key, _NOTHING))
    for pattern in filter(_stored, patterns):
        hits = pc.match_substring(column, pattern)
        candidates = hits if candidates is None else pc.or_(candidates, hits)
    if candidates is None:
        return np.zeros(len(column), dtype=bool)
    rows = np.flatnonzero(candidates.combine_chunks().to_numpy(zero_copy_only=False))
    texts = column.take(pa.array(rows)).combine_chunks().dictionary_encode()
    parsed = (json.loads(text) for text in texts.dictionary.to_pylist())
    good = np.fromiter((_holds(_at(each, key), wanted) for each in parsed), bool)
    found = np.zeros(len(column), dtype=bool)
    found[rows[good[texts.indices.to_numpy()]]] = True
    return found


def _holds(value: Any, wanted: set[tuple[str, Any]]) -> bool:
    """Whether a value is one of those that are wanted, or a list that contains one."""
    inside = value if isinstance(value, list) else ()
    return any(_comparable(each) in wanted for each in (value, *inside))


def _patterns(key: str, value: Any) -> Iterator[str]:
    """Substrings: one of them occurs in any metadata that has the value (and in some others)."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, int | float) and 0 < abs(value) < _EXACT:
        text = repr(int(value) if value == int(value) else value)
    else:
        text = ""
    for name in {key, key.rpartition(".")[2]}:
        yield f"{json.dumps(name, ensure_ascii=False)}: {text}"
        yield f"{json.dumps(name, ensure_ascii=False)}: ["


def _stored(text: str) -> bool:
    """Whether a document can contain it: half surrogate pairs are never stored."""
    return text.isascii() or text == text.encode(errors="replace").decode()


_NOTHING = object()


def _at(metadata: Any, key: str) -> Any:
    if not isinstance(metadata, dict):
        return _NOTHING
    if key in metadata:
        return metadata[key]
    for name in key.split("."):
        if not isinstance(metadata, dict) or name not in metadata:
            return _NOTHING
        metadata = metadata[name]
    return metadata


def _comparable(value: Any) -> tuple[str, Any]:
    """The same for equal values: numbers by value, all else as JSON."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number", value
    if isinstance(value, dict | list):
        return "json", json.dumps(value, sort_keys=True)
    return type(value).__name__, value


def _conditions(metadata: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if not isinstance(metadata, Mapping):
        raise BankError(f"filter.metadata is {_shown(metadata)}: give an object")
    for key, value in metadata.items():
        yield key, tuple(value) if isinstance(value, list) else (value,)


def _listed(data: Mapping[str, Any], key: str, kind: type, named: str) -> tuple | None:
    if key not in data:
        return None
    values = data[key]
    if not isinstance(values, list):
        raise BankError(f"filter.{key} is {_shown(values)}: give a list of {named}")
    for value in values:
        _checked(value, key, kind, named)
    return tuple(values)


def _time(data: Mapping[str, Any], key: str) -> int | None:
    if key not in data:
        return None
    return _checked(data[key], key, int, "milliseconds since 1970")


def _checked(value: Any, key: str, kind: type, named: str) -> Any:
    wide = kind is int and isinstance(value, int) and not -(1 << 63) <= value < 1 << 63
    if type(value) is not kind or wide:
        raise BankError(f"filter.{key} has {_shown(value)}: give {named}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
