"""Reading the documents of a memory: JSON lines, one document each, plain or gzipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.jsonl import objects_of, open_input
from data_pipeline.protocol import document_pieces
from data_pipeline.sources.pydocs import PydocsConfig, PydocsSource
from data_pipeline.splitting import DOCUMENT_TOKENS, split_text
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import ConfigError
from msa_train.memory.bank.documents import METADATA_BYTES, StoredDocument, metadata_bytes, text_of

_WIDE_NUMBER = 999_999_999
_WRAPPER = 2 * len(f"[{_WIDE_NUMBER}].") + 4  # in bytes; the 4 are control tokens


class CorpusFile:
    """Documents of a .jsonl or .jsonl.gz file, or of standard input (`-`), in their order.

    `text` is required; where it is blank, the title is the text. Optional: `id` (default: none),
    `title`, `metadata` (any JSON), `added` (milliseconds since 1970; default: now) and `part` (of a
    split document, as `msa memory texts` writes it). Other keys are ignored, empty lines skipped.
    Lines are read one at a time. Raises DataError, naming file and line, and for a corpus without
    documents.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.standard_input = str(path) == "-"
        if not self.standard_input and not self.path.is_file():
            raise DataError(
                f"corpus {path}: no such file; give a .jsonl or .jsonl.gz file, or - for standard "
                "input"
            )
        self._read = 0.0  # of the file, 0 to 1

    def documents(self, first_number: int = 0) -> Iterator[StoredDocument]:
        """Numbered first_number, +1, ..."""
        now = time.time_ns() // 1_000_000
        number = first_number
        for number, (where, data) in enumerate(objects_of(self._lines()), first_number + 1):
            title = _name(data, "title", where)
            yield StoredDocument(
                number - 1,
                _text(data, title, where),
                _name(data, "id", where),
                title,
                _metadata(data, where),
                _count(data, "part", 0, 1 << 31, where),
                _count(data, "added", now, 1 << 63, where),
            )
        if number == first_number:
            name = "standard input" if self.standard_input else self.path
            raise DataError(f"corpus {name} has no documents: give at least one line")

    def share_read(self) -> float | None:
        """How much of the file is read, 0 to 1; None where its size is not known."""
        return None if self.standard_input else self._read

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        if self.standard_input:
            for place, line in enumerate(sys.stdin.buffer, 1):
                if line.strip():
                    yield f"standard input, line {place}", line
            return
        size = max(1, self.path.stat().st_size)
        with open_input(self.path) as lines:
            stored = getattr(lines, "fileobj", lines)  # of gzip: the compressed file
            for place, line in enumerate(lines, 1):
                if line.strip():
                    self._read = stored.tell() / size
                    yield f"{self.path}, line {place}", line
        self._read = 1.0


def pydocs(tokenizer: Tokenizer) -> tuple[Iterator[StoredDocument], Callable[[], float]]:
    """The documentation of Python's standard library as a corpus, and how much of it is read."""
    now = time.time_ns() // 1_000_000
    entries = PydocsSource(PydocsConfig(), tokenizer).entries
    read = 0

    def documents() -> Iterator[StoredDocument]:
        nonlocal read
        for number, entry in enumerate(entries):
            read = number + 1
            yield StoredDocument(number, entry.text, entry.name, entry.name, added=now)

    return documents(), lambda: read / max(1, len(entries))


def _text(data: dict[str, Any], title: str, where: str) -> str:
    text = data.get("text")
    if not isinstance(text, str):
        raise DataError(f'{where}: "text" is {text!r:.80}: give a string')
    text = text_of(title, text)
    if not text.strip():
        raise DataError(f'{where}: "text" is blank, and there is no title: leave the line out')
    return _encodable(text, "text", where)


def _name(data: dict[str, Any], key: str, where: str) -> str:
    """An id or a title: "" where it is missing or null; a whole number as its digits."""
    value = data.get(key)
    if value is None:
        return ""
    if type(value) not in (str, int):
        raise DataError(f'{where}: "{key}" is {value!r:.80}: give a string')
    return _encodable(str(value), key, where)


def _encodable(text: str, key: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "{key}" has half a surrogate pair ({error.object[error.start]!a}): '
            "correct the text"
        ) from None
    return text


def _metadata(data: dict[str, Any], where: str) -> Any:
    value = data.get("metadata")
    try:
        size = metadata_bytes(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: "metadata" is no JSON ({error}): correct it') from None
    if size > METADATA_BYTES:
        raise DataError(
            f'{where}: "metadata" has {size:,} bytes as JSON: give {METADATA_BYTES:,} at most'
        )
    return value


def _count(data: dict[str, Any], key: str, default: int, below: int, where: str) -> int:
    value = data.get(key, default)
    if type(value) is not int or not 0 <= value < below:
        raise DataError(f'{where}: "{key}" is {value!r}: give a whole number, 0 or more')
    return value


@dataclass
class Splitting:
    """Splits documents of more than `limit` tokens, by the rule of data_pipeline/splitting.py.

    A part is a document of its own under the id of the whole; all are numbered anew from 0.
    going_on: called again and again; it raises to stop. split: how many were split, into how many
    parts; made: documents passed on so far.
    """

    tokenizer: Tokenizer
    limit: int = DOCUMENT_TOKENS
    going_on: Callable[[], None] = lambda: None
    split: int = 0
    parts: int = 0
    made: int = 0

    def __post_init__(self) -> None:
        if self.limit <= 2 * _WRAPPER:
            raise ConfigError(f"--document-tokens is {self.limit}: give more than {2 * _WRAPPER}")

    def __call__(self, documents: Iterable[StoredDocument]) -> Iterator[StoredDocument]:
        for document in documents:
            texts = self._texts(document.text)
            if len(texts) > 1 and getattr(document, "part", 0):
                raise DataError(
                    f"part {document.part} of document {document.id!r} has more than {self.limit} "
                    "tokens: give --document-tokens as it was split by"
                )
            for part, text in enumerate(texts, 1):
                given = document if len(texts) == 1 else replace(document, text=text, part=part)
                yield replace(given, number=self.made)
                self.made += 1

    def expected(self, share_read: Callable[[], float | None]) -> int | None:
        """How many documents it will have made, judged by how much is read."""
        share = share_read()
        return round(self.made / share) if share else None

    def _texts(self, text: str) -> list[str]:
        if len(text.encode("utf-8", "surrogatepass")) + _WRAPPER <= self.limit:
            return [text]  # a token has at least one byte
        texts = split_text(text, self.limit, self._length)
        if len(texts) > 1:
            self.split += 1
            self.parts += len(texts)
        return texts

    def _length(self, text: str) -> int:
        """Tokens of the text in the wrapper of the longest document number."""
        self.going_on()
        return len(self.tokenizer.encode_pieces(document_pieces(_WIDE_NUMBER, text)).tokens)
