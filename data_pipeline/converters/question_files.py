"""Questions of a user's own: JSON lines in the dataset folder's form, or a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import Record, read_csv
from data_pipeline.dataset import Question, read_questions
from data_pipeline.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SEVERAL = "|"


def add_questions(builder: Builder, path: Path, split: str) -> None:
    """The questions of a file about passages that the builder has.

    A .csv or .tsv file has the columns question and positives, and may have id and answers;
    several values of a cell stand with | between them. Any other file is JSON lines. Raises
    DataError, naming file and line, for what is broken and for an id that no passage has.
    """
    for where, question in _read(path):
        in_steps = {i for step in question.steps for i in step}
        if in_steps and in_steps != set(question.positives):
            raise DataError(
                f'{where}: "steps" and "positives" name different passages: name each positive '
                "in a step, or leave steps out"
            )

        def find(ids: Sequence[str], where: str = where) -> list[str | None]:
            return [builder.find(where, i) for i in ids]

        builder.question(
            where,
            split,
            question.question,
            find(question.positives),
            id=question.id,
            answers=question.answers,
            steps=[find(step) for step in question.steps],
            negatives=find(question.negatives),
            any_of=question.any_of,
        )


def _read(path: Path) -> Iterator[tuple[str, Question]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _DELIMITERS:
        yield from read_questions(path)
        return
    rows = read_csv(path, "question positives", _DELIMITERS[suffix])
    for place, row in enumerate(rows):
        id = row.id("id", None) or str(place)
        answers, positives = _values(row, "answers"), _values(row, "positives")
        yield row.where, Question(id, row.text("question"), answers, positives)


def _values(row: Record, column: str) -> tuple[str, ...]:
    cells = (cell.strip() for cell in row.text(column, "").split(_SEVERAL))
    return tuple(cell for cell in cells if cell)
