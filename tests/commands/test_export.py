"""`msa export`: says what was made, and tells the run's tracker of it."""

import json
from pathlib import Path

import pytest

from msa_train.cli import main
from msa_train.interop.export import Exported


@pytest.fixture
def logged(monkeypatch):
    found = []
    made = Exported(Path("run/checkpoints/step-7"), {"weights": "0123456789abcdef"})
    monkeypatch.setattr("msa_train.interop.export.export", lambda source, target, best: made)
    monkeypatch.setattr(
        "msa_train.training.tracking.start.log_export", lambda *given: found.append(given)
    )
    return found


def test_an_export_is_named_by_its_weights(logged, capsys):
    assert main(["export", "run", "out"]) == 0
    assert capsys.readouterr().out == "out: weights 0123456789ab\n"
    assert main(["export", "run", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"export": "out", "fingerprint": {"weights": "0123456789abcdef"}}
    assert logged == [(Path("run/checkpoints/step-7"), Path("out"))] * 2
