"""jsonl: passages and questions that have the dataset folder's form already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import files_with_splits
from data_pipeline.dataset import find_file, passage_lines, read_questions
from data_pipeline.errors import DataError

_QUESTIONS = re.compile(r"questions\.(.+)\.jsonl(\.gz)?")


def jsonl(builder: Builder, inputs: Sequence[Path], splits: Sequence[str]) -> None:
    """A folder (every split of it, or those asked for), or a corpus file and question files.

    Raises DataError for a broken line, and for an id that no passage has.
    """
    if len(inputs) == 1 and inputs[0].is_dir():
        corpus = find_file(inputs[0], "corpus")
        questions = _of_folder(inputs[0], splits)
    else:
        corpus = inputs[0]
        questions = files_with_splits(inputs[1:], splits) if inputs[1:] else []
    for where, passage in passage_lines(corpus):
        builder.passage(where, passage.title, passage.text, passage.id, passage.metadata)
    for path, split in questions:
        _add_questions(builder, path, split)


def _of_folder(folder: Path, splits: Sequence[str]) -> list[tuple[Path, str]]:
    if splits:
        return [(find_file(folder, f"questions.{split}"), split) for split in splits]
    named = [(path, _QUESTIONS.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, match[1]) for path, match in named if match]


def _add_questions(builder: Builder, path: Path, split: str) -> None:
    for where, question in read_questions(path):
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
