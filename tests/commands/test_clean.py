"""`msa data clean`."""

import json
from dataclasses import fields

import pytest

from data_pipeline.cleaning.clean import CleanConfig
from data_pipeline.cleaning.quality import QualityRules
from msa_train.cli import main
from tests.data_pipeline.cleaning.conftest import Folder, ask, sentence


@pytest.fixture
def made(tmp_path):
    return Folder(tmp_path / "set").make(
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


def test_the_defaults_that_help_names_are_those_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        main(["data", "clean", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    config = CleanConfig()
    bounds = [(f.name, f.default) for f in fields(QualityRules) if f.name != "answer_in_positive"]
    for name, default in [("near", config.near), ("ngram", config.ngram), *bounds]:
        option = f"--{name.replace('_', '-')} "
        described = shown.split(option)[-1].split(" --")[0]
        assert f"(default {default:g}" in described
