"""`msa quickstart`: the commands it runs, in order, and what stops it."""

import json
from types import SimpleNamespace

import pytest

from data_pipeline.sources.pydocs import PydocsSource
from msa_train.cli import build_parser
from msa_train.commands import quickstart
from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.interop.export import LoadedModel
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


@pytest.fixture
def options(tmp_path):
    run = ["quickstart", "--config", "configs/quickstart.yaml", "--output", str(tmp_path / "run")]
    options, options.overrides = build_parser().parse_known_args(run)
    return options


def test_a_command_that_fails_stops_it(options, capsys):
    given = []
    options.main = lambda arguments: given.append(arguments) or 3
    with pytest.raises(SystemExit) as ended:
        options.run(options)
    assert ended.value.code == 3
    assert [arguments[:2] for arguments in given] == [["data", "build"]]
    shown = capsys.readouterr().out
    assert "== 1/5" in shown and "$ msa data build --config configs/quickstart.yaml" in shown


def test_everything_is_run_in_order_and_reported(options, tmp_path, monkeypatch, capsys):
    given, folder = [], tmp_path / "run"
    folder.mkdir()

    def main(arguments):
        given.append(arguments)
        if arguments[0] == "eval":
            (folder / "report.json").write_text("{}")

    options.main = main
    asked = {"single": "one?", "multi_value": "many?", "pydocs": "docs?"}
    monkeypatch.setattr(quickstart, "_write_needles", lambda config, path: asked)
    monkeypatch.setattr(
        "msa_train.evaluation.report.write_report",
        lambda report, path: path.write_text(json.dumps(report)),
    )
    assert options.run(options) == 0
    assert [arguments[0] for arguments in given] == [
        "data", "train", "export", "memory", "memory", "ask", "ask", "ask", "eval",
    ]  # fmt: skip
    assert [arguments[3] for arguments in given if arguments[0] == "ask"] == list(asked.values())
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() == {"seconds", "peak_rss_gb"}
    assert "Report and pictures are in" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds a finished run"):
        options.run(options)


def test_needles_are_written_with_a_question_of_each_kind(tmp_path, monkeypatch):
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, *_: loaded)
    held_out = SimpleNamespace(queries=[SimpleNamespace(question="What does len do?")])
    monkeypatch.setattr(PydocsSource, "__init__", lambda self, *_: None)
    monkeypatch.setattr(PydocsSource, "whole_bank", lambda self, rng: held_out)
    config = load_config(
        ["--config", "configs/quickstart.yaml", "--data.niah.document_tokens", "128"]
    )
    found = quickstart._write_needles(config, tmp_path / "needles.jsonl")
    lines = (tmp_path / "needles.jsonl").read_text().splitlines()
    assert len(lines) == 1000 and all(json.loads(line)["text"] for line in lines)
    assert found["pydocs"] == "What does len do?"
    assert set(found) == {"single", "multi_value", "pydocs"}
