"""The elements of one long list in a JSON file, one at a time: published files reach gigabytes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import DataError
from data_pipeline.jsonl import check_strings, open_input

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_CUT_NUMBER = 3  # of a number cut in its ".", "e" or "e+", what stands before is a number too
_CUT_TOKEN = 16  # a literal or escape cut by the end of the buffer is reported this near to it


def read_list(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """(place, element) of the list that a JSON file is, or of the one under `key` of its object.

    place: "[3]" or "KEY[3]". Raises DataError, naming file and line, for what is not JSON, and
    when there is no such list.
    """
    with open_input(path) as file:
        text = _Text(path, io.TextIOWrapper(file, "utf-8-sig"))
        if key is not None:
            _find_key(text, key)
        elif text.peek() != "[":
            raise text.error("give a JSON list of records")
        for index, element in enumerate(_elements(text)):
            yield f"{key or ''}[{index}]", element
        if key is not None:
            while text.take(",}") == ",":
                _skip_member(text)
        if text.peek():
            raise text.error("there is text after the end of the JSON: remove it")


def _find_key(text: _Text, key: str) -> None:
    """Move to the list under `key`. Raises DataError when there is none."""
    if text.peek() != "{":
        raise text.error(f'give a JSON object with a list "{key}"')
    text.take("{")
    if text.peek() != "}":
        while text.peek() == '"':
            name = text.value()
            text.take(":")
            if name == key and text.peek() == "[":
                return
            text.value()
            if text.take(",}") == "}":
                break
    raise text.error(f'there is no list "{key}" in it: give a file of that form')


def _skip_member(text: _Text) -> None:
    text.value()
    text.take(":")
    text.value()


def _elements(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    yield text.value()
    while text.take(",]") == ",":
        yield text.value()


class _Text:
    """JSON text that is read as it is needed, and forgotten once it is taken."""

    def __init__(self, path: Path, file: IO[str]):
        self._path, self._file = path, file
        self._buffer, self._at, self._line = "", 0, 1  # the line on which the buffer begins
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, not taken; "" at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """The next character, one of `wanted`. Raises DataError for another one."""
        character = self.peek()
        if not character or character not in wanted:
            found = repr(character) if character else "the end of the file"
            raise self.error(f"not JSON: {found} stands where one of {wanted} must; correct it")
        self._at += 1
        return character

    def value(self) -> Any:
        """The next JSON value. Raises DataError when it is none."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError as error:
                raise self.error("nested too deep; correct it") from error
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._more():
                    continue
                raise self.error(f"not JSON: {error.msg}; correct it", error.pos) from error
            if end + _CUT_NUMBER < len(self._buffer) or not self._more():
                where = f"{self._path}, line {self._line_at(self._at)}"
                check_strings(where, value, self._buffer[self._at : end])
                self._at = end
                return value

    def error(self, says: str, at: int | None = None) -> DataError:
        line = self._line_at(self._at if at is None else at)
        return DataError(f"{self._path}, line {line}: {says}")

    def _line_at(self, at: int) -> int:
        return self._line + self._buffer.count("\n", 0, at)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return (
            error.msg.startswith("Unterminated string")  # reported where the string begins
            or error.pos > len(self._buffer) - _CUT_TOKEN
        )

    def _more(self) -> bool:
        """Forget what was taken and read on, twice as much for a value that did not fit."""
        read = self._file.read(max(_CHUNK, len(self._buffer) - self._at))
        if read:
            self._line += self._buffer.count("\n", 0, self._at)
            self._buffer, self._at = self._buffer[self._at :] + read, 0
        return bool(read)
