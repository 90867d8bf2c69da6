"""A dataset folder: passages, and questions that name the passages which answer them.

DIR/corpus.jsonl[.gz]             {"id", "title", "text"}, one passage per line
DIR/questions.SPLIT.jsonl[.gz]    {"id", "question", "answers": [...], "positives": [id, ...],
                                   "any_of": true, "steps": [[id, ...], ...],
                                   "negatives": [id, ...]}

Every converter writes this form and every dataset source reads it. `answers`, `any_of`, `steps`
and `negatives` may be left out; other keys are ignored.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.jsonl import id_of, read_objects

Id = TypeVar("Id", bound=Hashable)


@dataclass(frozen=True)
class Passage:
    """A passage of a corpus; `id` is its name inside the dataset.

    metadata: any JSON; memory banks keep it, training does not look at it.
    """

    id: str
    title: str
    text: str
    metadata: Any = field(default=None, hash=False)


@dataclass(frozen=True)
class Question:
    """A question about a corpus.

    answers: alternatives, the first the main one; empty: the passages are all that is known.
    positives: ids of ALL the passages needed; with any_of, of alternatives, each enough by itself.
    steps: the same ids in the order in which a chain of retrievals finds them, one group per step
    (empty: all at once; with any_of there are none). negatives: ids of passages that the dataset
    says do not answer it.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...] = ()
    negatives: tuple[str, ...] = ()
    any_of: bool = False


def found_first(steps: Iterable[Iterable[Id]]) -> tuple[tuple[Id, ...], ...]:
    """Steps that name each passage once, where it is found first; empty ones are dropped."""
    seen: set[Id] = set()
    kept = []
    for step in steps:
        if group := tuple(id for id in dict.fromkeys(step) if id not in seen):
            seen.update(group)
            kept.append(group)
    return tuple(kept)


def find_file(folder: Path | str, name: str) -> Path:
    """FOLDER/NAME.jsonl or .jsonl.gz. Raises DataError when neither is there."""
    for path in _possible(folder, name):
        if path.is_file():
            return path
    raise DataError(
        f"{Path(folder) / name}.jsonl (or .jsonl.gz) is missing: give a dataset folder, as "
        "`msa data convert` writes it"
    )


def has_file(folder: Path | str, name: str) -> bool:
    """Whether `find_file` would find it."""
    return any(path.is_file() for path in _possible(folder, name))


def _possible(folder: Path | str, name: str) -> list[Path]:
    return [Path(folder) / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz")]


def read_passages(path: Path, unnamed: Callable[[int], str] = str) -> Iterator[Passage]:
    """Passages of a corpus file. Raises DataError, naming file and line.

    unnamed: the id of a passage that has none, by its place in the file.
    """
    return (passage for _, passage in passage_lines(path, unnamed))


def passage_lines(path: Path, unnamed: Callable[[int], str] = str) -> Iterator[tuple[str, Passage]]:
    """As read_passages, with the place of each passage: (where, passage)."""
    for place, (where, data) in enumerate(read_objects(path)):
        text = data.get("text")
        if not isinstance(text, str):
            raise DataError(f'{where}: "text" is {text!r}: give a string')
        id = id_of(where, data, "id") or unnamed(place)
        yield where, Passage(id, _title(data, where), text, _metadata(data, where))


def read_questions(path: Path) -> Iterator[tuple[str, Question]]:
    """(where, question) of a question file. Raises DataError, naming file and line."""
    for place, (where, data) in enumerate(read_objects(path)):
        question = data.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f'{where}: "question" is {question!r}: give a string with text')
        steps = data.get("steps", [])
        if not isinstance(steps, list):
            raise DataError(f'{where}: "steps" is {steps!r}: give a list of lists of passage ids')
        any_of = data.get("any_of", False)
        if not isinstance(any_of, bool) or (any_of and steps):
            raise DataError(
                f'{where}: "any_of" is {any_of!r}: give true or false, no true with steps'
            )
        yield (
            where,
            Question(
                id_of(where, data, "id") or str(place),
                question,
                _strings(data, "answers", where),
                _strings(data, "positives", where),
                tuple(_strings({"steps": step}, "steps", where) for step in steps),
                _strings(data, "negatives", where),
                any_of,
            ),
        )


class DatasetWriter:
    """Writes a dataset folder: it appears whole when the `with` block ends, or not at all.

    Passages and questions may come in any order. Raises DataError when the folder exists already,
    or when the block ends without one passage. counts: the lines of each file.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.counts: dict[str, int] = {}
        self._files: dict[str, Any] = {}

    def __enter__(self) -> DatasetWriter:
        if self.folder.exists():
            raise DataError(f"{self.folder} exists already: remove it, or give another folder")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._partial = stack.enter_context(files.whole(self.folder))
            self._partial.mkdir()
            stack.push(self._refuse_nothing)
            self._stack = stack.pop_all()
        return self

    def passage(self, passage: Passage) -> None:
        data = {key: value for key, value in vars(passage).items() if value is not None}
        self._write("corpus.jsonl", data)

    def question(self, split: str, question: Question) -> None:
        data = {key: value for key, value in vars(question).items() if value}
        self._write(f"questions.{split}.jsonl", data)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _refuse_nothing(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and "corpus.jsonl" not in self.counts:
            raise DataError(f"nothing to write to {self.folder}: the input holds no passage")

    def _write(self, name: str, data: dict[str, Any]) -> None:
        if name not in self._files:
            file = open(self._partial / name, "w", encoding="utf-8")  # noqa: SIM115
            self._files[name] = self._stack.enter_context(file)
        self._files[name].write(json.dumps(data, ensure_ascii=False) + "\n")
        self.counts[name] = self.counts.get(name, 0) + 1


def write_dataset(
    folder: Path | str,
    passages: Iterable[Passage],
    questions: Iterable[tuple[str, Question]],
) -> dict[str, int]:
    """Write a dataset folder; it appears whole or not at all. questions: (split, question) pairs.

    Passages are written first, then questions, both lazily. Returns the lines of each file.
    Raises DataError when the folder exists already.
    """
    with DatasetWriter(folder) as writer:
        for passage in passages:
            writer.passage(passage)
        for split, question in questions:
            writer.question(split, question)
    return writer.counts


def _title(data: dict[str, Any], where: str) -> str:
    title = data.get("title")
    if title is None:
        return ""
    if isinstance(title, bool) or not isinstance(title, int | str):  # 1984 is a title
        raise DataError(f'{where}: "title" is {reprlib.repr(title)}: give a string')
    return str(title)


def _metadata(data: dict[str, Any], where: str) -> Any:
    """Refuses NaN and infinity, which Python reads and JSON does not have."""
    value = data.get("metadata")
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: "metadata" is no JSON ({error}): correct it') from None
    return value


def _strings(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = data.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f'{where}: "{key}" is {values!r}: give a list of strings')
    return tuple(values)
