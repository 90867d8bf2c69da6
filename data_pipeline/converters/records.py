"""Records of input files: their fields are checked, and what is wrong is named by place."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.converters.json_list import read_list
from data_pipeline.errors import DataError
from data_pipeline.jsonl import read_objects

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Record:
    """A JSON object of an input file.

    place: "FILE" or "FILE, line 7". path: where it stands in there, "data[3].paragraphs[0]".
    Every method raises DataError, naming both, for a field that is missing or of a wrong type.
    """

    data: dict[str, Any]
    place: str
    path: str = ""

    @property
    def where(self) -> str:
        return f"{self.place}, {self.path}" if self.path else self.place

    def error(self, says: str) -> DataError:
        return DataError(f"{self.where}: {says}")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string; given a default, it may be missing or null."""
        return self._get(key, str, "a string", default)

    def id(self, key: str, default: Any = _REQUIRED) -> Any:
        """A string with text or a whole number, as a string."""
        value = self.data.get(key)
        if value in (None, "") and default is not _REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self._wrong(key, "an id, a string or a whole number")
        return str(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._get(key, bool, "true or false", default)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A whole number; given a default, it may be missing or null."""
        if isinstance(self.data.get(key), bool):
            raise self._wrong(key, "a whole number")
        return self._get(key, int, "a whole number", default)

    def list(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        return self._get(key, list, "a list", default)

    def texts(self, key: str, default: Any = _REQUIRED) -> list[str]:
        values = self.list(key, default)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of strings")
        return values

    def record(self, key: str) -> Record:
        return Record(self._get(key, dict, "an object"), self.place, self._path(key))

    def records(self, key: str, default: Any = _REQUIRED) -> Iterator[Record]:
        for index, value in enumerate(self.list(key, default)):
            yield _record(value, self.place, f"{self._path(key)}[{index}]")

    def _get(self, key: str, kind: type, wanted: str, default: Any = _REQUIRED) -> Any:
        value = self.data.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not isinstance(value, kind):
            raise self._wrong(key, wanted)
        return value

    def _wrong(self, key: str, wanted: str) -> DataError:
        if key not in self.data:
            return self.error(f'"{key}" is missing: give {wanted}')
        return self.error(f'"{key}" is {reprlib.repr(self.data[key])}: give {wanted}')

    def _path(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def line_records(path: Path) -> Iterator[Record]:
    """Records of a JSON-lines file. Raises DataError for a line that is no object."""
    return (Record(data, where) for where, data in read_objects(path))


def list_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """Records of the list that a JSON file is, or that stands under `key` in it.

    Raises DataError for what is not JSON, no list, or an element that is no object.
    """
    return (_record(value, str(path), place) for place, value in read_list(path, key))


def _record(value: Any, place: str, path: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}, {path}: give a JSON object, not {type(value).__name__}")
    return Record(value, place, path)
