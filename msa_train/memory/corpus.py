"""Reading what a memory is made of: JSON lines, one document each, plain or gzipped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.dataset import read_passages
from data_pipeline.errors import DataError
from data_pipeline.protocol import document_pieces
from data_pipeline.splitting import split_text
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import ConfigError
from msa_train.memory.storage.documents import StoredDocument

_WIDE_NUMBER = 999_999_999
_WRAPPER = 2 * len(f"[{_WIDE_NUMBER}].") + 4  # bytes, and control tokens


def read_corpus(path: Path | str, first_number: int = 0) -> Iterator[StoredDocument]:
    """Documents of a .jsonl or .jsonl.gz file, numbered first_number, +1, ... in file order.

    `text` is required; `id` (a bank gives its number to one without), `title` and `metadata` (any
    JSON) are optional; other keys are ignored; empty lines are skipped. Lazy: one line at a time.
    Raises DataError, naming file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"corpus {path}: no such file; give a .jsonl or .jsonl.gz file")
    now = time.time_ns() // 1_000_000
    for number, passage in enumerate(read_passages(path, lambda _: ""), first_number):
        yield StoredDocument(
            number, passage.text, passage.id, passage.title, passage.metadata, added=now
        )


@dataclass
class Splitting:
    """Long documents in parts, by the rule of data_pipeline/splitting.py; counts what it did.

    A part is a document of its own under the id of the whole; numbers are counted from 0 anew.
    """

    tokenizer: Tokenizer
    limit: int
    split: int = 0
    parts: int = 0

    def __post_init__(self) -> None:
        if self.limit <= 2 * _WRAPPER:
            raise ConfigError(f"document-tokens is {self.limit}: give more than {2 * _WRAPPER}")

    def __call__(self, documents: Iterable[StoredDocument]) -> Iterator[StoredDocument]:
        number = 0
        for document in documents:
            texts = self._texts(document.text)
            for part, text in enumerate(texts, 1 if len(texts) > 1 else 0):
                yield replace(document, number=number, text=text, part=part)
                number += 1

    def _texts(self, text: str) -> list[str]:
        if len(text.encode("utf-8", "surrogatepass")) + _WRAPPER <= self.limit:
            return [text]  # a token has a byte at least
        texts = split_text(text, self.limit, self._length)
        if len(texts) > 1:
            self.split += 1
            self.parts += len(texts)
        return texts

    def _length(self, text: str) -> int:
        """Tokens with the wrapper of a wide number."""
        return len(self.tokenizer.encode_pieces(document_pieces(_WIDE_NUMBER, text)).tokens)
