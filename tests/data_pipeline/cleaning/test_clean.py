"""The folder and the report are made whole or not at all."""

import pytest

from data_pipeline.cleaning.clean import CleanConfig
from data_pipeline.errors import DataError
from tests.data_pipeline.cleaning.conftest import ask, sentence


@pytest.fixture
def made(folder):
    return folder().make(
        {"a": sentence(1), "b": sentence(1) + "!", "c": sentence(2), "d": "tiny"},
        train=[ask("1", "Who?", ["b"], answers=["x"]), ask("2", "where", ["d"])],
        dev=[ask("3", "When?", ["c"])],
    )


def left(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_cleaning_twice_changes_nothing(made):
    out, _ = made.clean()
    again, report = out.clean()
    assert (again.path / "corpus.jsonl").read_bytes() == (out.path / "corpus.jsonl").read_bytes()
    assert again.questions() == out.questions()
    assert report["passages"]["rules"] == {}


def test_a_folder_without_questions(folder):
    out, report = folder().make({"a": sentence(1), "b": sentence(2)}).clean()
    assert out.ids() == ["a", "b"] and report["questions"] == {}


@pytest.mark.parametrize(
    ("passages", "questions", "said"),
    [
        ({"a": sentence(1)}, [ask("1", "Who?", ["gone"])], "line 1: the corpus has no.*gone"),
        ({"a": sentence(1)}, [ask("1", "Who?", ["a"], steps=[["gone"]])], "gone"),
        ({"a": sentence(1)}, [ask("1", "Who?", ["a"], negatives=["gone"])], "gone"),
        ({"a": sentence(1)}, [ask("1", " ", ["a"])], "line 1.*question"),
        ({"a": 5}, [], "line 1.*text"),
    ],
)
def test_broken_input_is_named_and_nothing_is_left(folder, passages, questions, said):
    made = folder().make(passages, train=questions)
    with pytest.raises(DataError, match=said):
        made.clean()
    assert left(made.path) == ["set"]


def test_a_failure_while_writing_leaves_nothing(made, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("data_pipeline.cleaning.clean.write_dataset", fail)
    with pytest.raises(OSError, match="disk full"):
        made.clean()
    assert left(made.path) == ["set"]


def test_the_settings_have_defaults_that_are_written_down():
    config = CleanConfig()
    assert (config.near, config.ngram, config.quality.answer_in_positive) == (0.8, 13, False)
