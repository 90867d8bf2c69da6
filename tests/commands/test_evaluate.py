"""`msa eval`: where its report goes, and what it prints."""

import json

import pytest

from msa_train.cli import main
from msa_train.interop.export import LoadedModel
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


@pytest.fixture
def evaluated(monkeypatch):
    """Folders that reports went to."""
    found = []
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), FINGERPRINT)
    monkeypatch.setattr("msa_train.interop.export.load_export", lambda folder, placed: loaded)
    monkeypatch.setattr(
        "msa_train.evaluation.evaluate.evaluate",
        lambda model, tokenizer, config, out, show: found.append(out) or show({"rows": []}),
    )
    return found


def test_the_report_is_json_and_goes_where_it_is_sent(evaluated, tmp_path, capsys):
    config = ["--config", "configs/quickstart.yaml", "--output", str(tmp_path / "run")]
    assert main(["eval", "export", *config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": []}
    assert main(["eval", "export", *config, "--out", str(tmp_path / "other"), "--json"]) == 0
    assert evaluated == [tmp_path / "run", tmp_path / "other"]
    assert all(folder.is_dir() for folder in evaluated)
