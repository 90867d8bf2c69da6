"""A dataset made ready: passages split, questions pointing at the parts, hard negatives found.

The tables are Arrow files that every process maps into memory, so that a corpus of any size costs
each of them nothing. They are made once for given files, settings and tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.dataset import (
    Passage,
    Question,
    find_file,
    found_first,
    read_passages,
    read_questions,
)
from data_pipeline.errors import DataError
from data_pipeline.files import whole
from data_pipeline.jsonl import read_objects
from data_pipeline.sources.dataset_config import DatasetConfig
from data_pipeline.splitting import document_length, split_text
from data_pipeline.tokenizer import Tokenizer

if TYPE_CHECKING:  # a run's settings name this source, and are read where no Arrow is installed
    import pyarrow as pa

PASSAGES, QUESTIONS = "passages.arrow", "questions.arrow"
_FORMAT = 3  # changes with the tables' form or meaning
_ROWS = 4096  # of one record batch


def prepare(
    config: DatasetConfig, split: str | None, document_tokens: int, tokenizer: Tokenizer, root: Path
) -> Path:
    """Folder with the tables of a dataset under `root`, made unless they are there.

    split: of the questions (None: none). document_tokens: passages longer than this are split.
    Raises DataError, naming file and line, for what is broken in the dataset.
    """
    files = _files(config, split)
    corpus, asked = _keys(files, config, document_tokens, tokenizer)
    folder = root / f"{corpus}-{asked}"
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        with whole(folder) as partial:
            partial.mkdir()
            same = next(root.glob(f"{corpus}-*/{PASSAGES}"), None)
            if same is None:
                split = _split_corpus(files["corpus"], config.titles, document_tokens, tokenizer)
                _write(partial / PASSAGES, split)
            else:  # another split of the dataset has them
                shutil.copyfile(same, partial / PASSAGES)
            if "questions" in files:
                _write_questions(partial, files, config.negatives.bm25)
    return folder


def open_table(path: Path) -> pa.Table:
    """An Arrow file, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers that are long enough to tell.

    That is four letters, or two signs of a script that writes words with one or two (Chinese):
    `yes` and `12` are everywhere.
    """
    folded = text.casefold()
    return any(
        len(a) >= (2 if max(a) >= "⺀" else 4) and a.casefold() in folded for a in answers if a
    )


def shown_text(title: str, text: str) -> str:
    """A document as it stands in a bank, under its title if it has one."""
    return f"{title}\n{text}" if title else text


def _files(config: DatasetConfig, split: str | None) -> dict[str, Path]:
    files = {"corpus": find_file(config.path, "corpus")}
    if split is not None:
        files["questions"] = find_file(config.path, f"questions.{split}")
        if config.negatives.mined is not None:
            files["mined"] = Path(config.negatives.mined)
    return files


def _keys(
    files: dict[str, Path], config: DatasetConfig, document_tokens: int, tokenizer: Tokenizer
) -> tuple[str, str]:
    """Digests of all that the passages depend on, with the dataset's name, and the questions."""
    digests = {}
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    corpus = [_FORMAT, digests["corpus"], config.titles, document_tokens, tokenizer.fingerprint]
    asked = [digests.get("questions"), digests.get("mined"), config.negatives.bm25]
    texts = (json.dumps(settings).encode() for settings in (corpus, asked))
    of_corpus, of_asked = (hashlib.sha256(text).hexdigest()[:12] for text in texts)
    return f"{Path(config.path).name}-{of_corpus}", of_asked


def _split_corpus(
    path: Path, titles: bool, document_tokens: int, tokenizer: Tokenizer
) -> Iterator[dict[str, str]]:
    """Rows of all passages; those of one passage stand together."""
    seen: set[str] = set()
    for passage in read_passages(path):
        if passage.id in seen:
            raise DataError(f"{path}: passage id {passage.id!r} comes twice")
        seen.add(passage.id)
        yield from _split(passage, titles, document_tokens, tokenizer)
    if not seen:
        raise DataError(f"{path} holds no passage: give a corpus with text")


def _write_questions(folder: Path, files: dict[str, Path], bm25: int) -> None:
    passages = open_table(folder / PASSAGES)
    found = _QuestionRows(files, passages)
    rows = [found.row(where, question) for where, question in read_questions(files["questions"])]
    if bm25:
        _add_bm25(rows, passages, bm25)
    _write(folder / QUESTIONS, iter(rows))


def _split(
    passage: Passage, titles: bool, limit: int, tokenizer: Tokenizer
) -> Iterator[dict[str, str]]:
    """Rows of a passage; a title that would fill half of it is not shown.

    A title alone is the text. There is no row without either.
    """
    title, whole_text = passage.title if titles else "", passage.text.strip()
    if not whole_text:
        title, whole_text = "", passage.title.strip()
    if title and document_length(tokenizer, shown_text(title, "")) > limit // 2:
        title = ""

    def length(text: str) -> int:
        return document_length(tokenizer, shown_text(title, text))

    for text in split_text(whole_text, limit, length):
        if text:
            yield {"id": passage.id, "title": title, "text": text}


class _QuestionRows:
    """Questions as rows: passages become the parts that matter."""

    def __init__(self, files: dict[str, Path], passages: pa.Table):
        self._corpus, self._texts = files["corpus"], passages["text"]
        self._parts: dict[str, range] = {}
        for row, id in enumerate(passages["id"].to_pylist()):
            first = self._parts.get(id, range(row, row)).start
            self._parts[id] = range(first, row + 1)
        self._mined = _read_mined(files["mined"]) if "mined" in files else {}

    def row(self, where: str, question: Question) -> dict[str, Any]:
        together = [(id,) for id in question.positives] if question.any_of else [question.positives]
        steps = question.steps or (tuple(together) if question.positives else ())
        if set().union(*steps) != set(question.positives):
            raise DataError(
                f'{where}: "steps" find {sorted(set().union(*steps))}, but "positives" are '
                f"{sorted(question.positives)}: give the same passages"
            )
        if not steps:
            raise DataError(f'{where}: "positives" is empty: name the passages that answer it')
        negatives = [*question.negatives, *self._mined.get(question.id, ())]
        groups = (
            [part for id in step for part in self._positive(id, question, where)] for step in steps
        )
        return {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "steps": [sorted(group) for group in found_first(groups)],
            "any_of": question.any_of,
            "negatives": [part for id in negatives for part in self._known(id, where)],
        }

    def _positive(self, id: str, question: Question, where: str) -> Sequence[int]:
        """The parts of a passage that hold an answer; the first, if none does."""
        parts = self._known(id, where)
        if len(parts) <= 1:
            return parts
        holding = [p for p in parts if holds_answer(self._texts[p].as_py(), question.answers)]
        return holding or parts[:1]

    def _known(self, id: str, where: str) -> range:
        if not (parts := self._parts.get(id, range(0))):
            raise DataError(f"{where}: passage {id!r} is not in {self._corpus}, or has no text")
        return parts


def _read_mined(path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for where, data in read_objects(path):
        if not isinstance(data.get("id"), str) or not isinstance(data.get("negatives"), list):
            raise DataError(f'{where}: give {{"id": question id, "negatives": [passage ids]}}')
        found[data["id"]] = tuple(data["negatives"])
    return found


def _add_bm25(rows: list[dict[str, Any]], passages: pa.Table, count: int) -> None:
    """Append each question's best by BM25 that are neither positive nor hold an answer."""
    from data_pipeline.bm25 import BM25

    texts = passages["text"].to_pylist()
    shown = [shown_text(*pair) for pair in zip(passages["title"].to_pylist(), texts, strict=True)]
    everything = np.arange(len(texts))
    ranked = BM25.of(shown).rank(everything, [row["question"] for row in rows], count + 8)
    for row, best in zip(rows, ranked.tolist(), strict=True):
        taken = {part for step in row["steps"] for part in step}.union(row["negatives"])
        fresh = (p for p in best if p not in taken and not holds_answer(texts[p], row["answers"]))
        row["negatives"] += islice(fresh, count)


def _schema(name: str) -> pa.Schema:
    """Of the file of this name."""
    import pyarrow as pa

    if name == PASSAGES:
        return pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
    parts = pa.list_(pa.int32())
    return pa.schema(
        [
            ("id", pa.string()),
            ("question", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("steps", pa.list_(parts)),
            ("any_of", pa.bool_()),
            ("negatives", parts),
        ]
    )


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa

    schema = _schema(path.name)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
