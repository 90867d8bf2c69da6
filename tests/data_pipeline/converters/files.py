"""Writes input files of published formats, and reads back what was converted."""

import json
from pathlib import Path

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import find_file, read_passages, read_questions
from data_pipeline.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, data) -> Path:
    return write(path, json.dumps(data))


def write_jsonl(path: Path, *values) -> Path:
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


def passages(folder):
    """{id: (title, text)} of a dataset folder, in its order."""
    return {p.id: (p.title, p.text) for p in read_passages(find_file(folder, "corpus"))}


def titles(folder):
    """{id: title} of a dataset folder."""
    return {id: title for id, (title, _) in passages(folder).items()}


def questions(folder, split="train"):
    return [question for _, question in read_questions(find_file(folder, f"questions.{split}"))]


def named(folder, ids):
    """Titles of passages, or their texts where they have no title."""
    known = passages(folder)
    return [known[id][0] or known[id][1] for id in ids]


def steps(folder):
    """Titles of the steps of each question, sorted within a step."""
    return [[sorted(named(folder, step)) for step in q.steps] for q in questions(folder)]


def fails(tmp_path, format, inputs, *said, **options):
    """The conversion fails with a message that holds all of `said`, and leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as raised:
        convert(format, inputs, tmp_path / "failed", **options)
    for text in said:
        assert text in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before
    return str(raised.value)
