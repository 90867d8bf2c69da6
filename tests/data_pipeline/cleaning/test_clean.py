"""The command, and the folder and report that it makes whole or not at all."""

import json

import pytest

from data_pipeline.cleaning.clean import CleanConfig
from data_pipeline.errors import DataError
from msa_train.cli import main
from tests.data_pipeline.cleaning.conftest import Folder, ask, sentence


@pytest.fixture
def made(folder):
    return folder().make(
        {"a": sentence(1), "b": sentence(1) + "!", "c": sentence(2), "d": "tiny"},
        train=[ask("1", "Who?", ["b"], answers=["x"]), ask("2", "where", ["d"])],
        dev=[ask("3", "When?", ["c"])],
    )


def left(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_clean_writes_folder_and_report(made, tmp_path, capsys):
    out, report = tmp_path / "new" / "out", tmp_path / "reports" / "r.json"
    arguments = ["data", "clean", str(made.path), "--out", str(out), "--report", str(report)]
    assert main([*arguments, "--against", f"{made.path}:dev", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(report.read_text())
    assert printed["passages"]["read"] == 4 and printed["passages"]["written"] == 2
    assert printed["settings"]["quality"]["min_words"] == 5
    cleaned = Folder(out)
    assert cleaned.ids() == ["a", "c"]
    assert [(q.id, q.positives) for q in cleaned.questions()] == [("1", ("a",))]
    assert left(out) == ["out"] and left(report) == ["r.json"]
    assert report.stat().st_mode & 0o777 == 0o644


def test_clean_prints_counts_and_takes_bounds(made, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "clean", str(made.path), "--out", str(out), "--min-words", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("passages: 4 read, 3 written\n  exact_duplicate: 1\n")
    assert "out.report.json" in shown.err
    assert (tmp_path / "out.report.json").is_file()


def test_examples_are_few_and_short(folder):
    made = folder().make({str(i): sentence(1, 100) + "!" * i for i in range(9)})
    _, report = made.clean(examples=2)
    entry = report["passages"]["rules"]["exact_duplicate"]
    assert entry["count"] == 8 and len(entry["examples"]) == 2
    assert len(entry["examples"][0]["text"]) == 200


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
    ("arguments", "said"),
    [
        (["nowhere", "--out", "{}/out"], "nowhere"),
        (["{}/set", "--out", "{}/set"], "exists already"),
        (["{}/set", "--out", "{}/out", "--near", "0.2"], "near is 0.2"),
        (["{}/set", "--out", "{}/out", "--near", "nan"], "near is nan"),
        (["{}/set", "--out", "{}/out", "--ngram", "0"], "ngram is 0"),
        (["{}/set", "--out", "{}/out", "--examples", "-1"], "examples is -1"),
        (["{}/set", "--out", "{}/out", "--min-words", "0"], "min_words is 0"),
        (["{}/set", "--out", "{}/out", "--min-words", "90"], "nothing to write"),
        (["{}/set", "--out", "{}/out", "--report", "{}/set"], "is a folder"),
        (["{}/set", "--out", "{}/out", "--report", "{}/out/r.json"], "inside"),
        (["{}/set", "--out", "{}/out", "--against", "{}/none"], "none"),
        (["{}/set", "--out", "{}/out", "--against", "{}/set:dev", "{}/set:dev"], "twice"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(made, tmp_path, capsys, arguments, said):
    arguments = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    assert main(["data", "clean", *arguments]) == 3
    shown = capsys.readouterr()
    assert said in shown.err and shown.out == ""
    assert left(made.path) == ["set"]


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


def test_two_passages_of_one_id(folder):
    made = folder().make({"a": sentence(1)})
    path = made.path / "corpus.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"two passages have the id 'a'"):
        made.clean()


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
