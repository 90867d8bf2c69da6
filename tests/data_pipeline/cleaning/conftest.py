import json

import pytest

from data_pipeline.cleaning.clean import CleanConfig, clean_dataset
from data_pipeline.dataset import find_file, read_passages, read_questions


def sentence(seed, count=40):
    """Words that no other seed shares: texts of different seeds have nothing in common."""
    return " ".join(f"{'abcdefghij'[seed % 10]}{seed}word{i}" for i in range(count))


class Folder:
    """A dataset folder made by hand, and how it looks after cleaning."""

    def __init__(self, path):
        self.path = path

    def make(self, passages, **questions):
        """passages: id -> text, or (title, text); questions: split -> list of dicts."""
        self.path.mkdir()
        rows = []
        for name, text in passages.items():
            title, text = text if isinstance(text, tuple) else ("", text)
            rows.append({"id": name, "title": title, "text": text})
        self._lines("corpus", rows)
        for split, asked in questions.items():
            self._lines(f"questions.{split}", asked)
        return self

    def _lines(self, name, rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.path / f"{name}.jsonl").write_text(text)

    def clean(self, **settings):
        """(folder made, report)"""
        out = Folder(self.path.with_name(f"{self.path.name}-clean"))
        report = clean_dataset(
            self.path, out.path, out.path.with_suffix(".report.json"), CleanConfig(**settings)
        )
        return out, report

    def ids(self):
        return [passage.id for passage in read_passages(find_file(self.path, "corpus"))]

    def questions(self, split="train"):
        try:
            path = find_file(self.path, f"questions.{split}")
        except ValueError:
            return []
        return [question for _, question in read_questions(path)]


@pytest.fixture
def folder(tmp_path):
    return lambda name="set": Folder(tmp_path / name)


def ask(name, text, positives, **more):
    return {"id": name, "question": text, "positives": positives, **more}


def count(rules, rule):
    return rules.get(rule, {"count": 0})["count"]
