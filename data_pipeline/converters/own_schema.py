"""jsonl: passages and questions that have the dataset folder's form already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.converters.builder import Builder
from data_pipeline.converters.inputs import files_with_splits
from data_pipeline.converters.question_files import add_questions
from data_pipeline.dataset import find_file, passage_lines

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
        add_questions(builder, path, split)


def _of_folder(folder: Path, splits: Sequence[str]) -> list[tuple[Path, str]]:
    if splits:
        return [(find_file(folder, f"questions.{split}"), split) for split in splits]
    named = [(path, _QUESTIONS.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, match[1]) for path, match in named if match]
