"""`msa data mine`."""

import json

import pytest

from msa_train.cli import main
from msa_train.interop import export
from tests.evaluation.conftest import model, tokenizer, verbs  # noqa: F401 (fixtures)


@pytest.fixture
def command(model, tokenizer, verbs, tmp_path, monkeypatch):  # noqa: F811
    """The command, on ten questions about thirty passages."""
    loaded = export.LoadedModel(model, tokenizer, {})
    monkeypatch.setattr(export, "load_export", lambda folder, placed: loaded)
    settings = {"verbs": {"path": verbs.path, "document_tokens": 128}}
    (tmp_path / "run.yaml").write_text(
        json.dumps({"output": str(tmp_path), "data": {"datasets": settings}})
    )
    return ["data", "mine", str(tmp_path), "verbs", "--config", str(tmp_path / "run.yaml")]


def test_it_writes_what_the_next_run_reads(command, tmp_path, capsys):
    out = tmp_path / "mined.jsonl"
    assert main([*command, "--out", str(out), "--count", "2"]) == 0
    assert "20 negatives" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 10 and all(len(row["negatives"]) == 2 for row in rows)
    assert main([*command, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_what_is_wrong_is_named_and_nothing_is_left(command, tmp_path, capsys, monkeypatch):
    new = ["--out", str(tmp_path / "new" / "x")]
    assert main([*command, *new, "--count", "0"]) == 2
    assert "--count 0: give 1 or more" in capsys.readouterr().err
    command[3] = "nouns"
    assert main([*command, *new]) == 2
    assert "there are verbs" in capsys.readouterr().err
    command[3] = "verbs"

    def fails(*_):
        yield "q", ["a"]
        raise OSError("the disk is full")

    monkeypatch.setattr("msa_train.evaluation.mining.mine", fails)
    assert main([*command, *new]) == 11
    assert "the disk is full" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []
