"""Continual training of a real backbone: its steps are commands, and it stops when time is up."""

import json
import sys
import time

import pytest
import yaml

from msa_train.bench.gpu import continual
from msa_train.errors import ConfigError, RankError


def test_without_a_backbone_it_says_where_to_get_one():
    with pytest.raises(ConfigError, match="make backbone"):
        next(continual.rows(None, 10.0))


def test_its_steps_are_commands_of_msa(tmp_path, monkeypatch):
    said = []
    recall = {
        name: {f"recall@{k}": value for k in (1, 5, 16)}
        for name, value in (("fitted", 0.5), ("BM25", 0.8))
    }

    def msa(*arguments):
        said.append([str(x) for x in arguments])
        return json.dumps({"corpora": {"pydocs": {"recall": recall}}})

    def train(arguments, seconds):
        said.append([str(x) for x in arguments])
        run = arguments[arguments.index("--output") + 1]
        lines = [{"step": 5, "loss/lm": 2.0, "active_tokens_per_s": 7.0}, {"other": 1},
                 {"step": 10, "loss/lm": 1.0, "active_tokens_per_s": 9.0}]  # fmt: skip
        folder = tmp_path.__class__(run)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(continual, "msa", msa)
    monkeypatch.setattr(continual, "train", train)
    found = {row.what: row for row in continual.rows(tmp_path, 1000.0)}
    assert found.keys() == dict(continual.planned(None)).keys()
    assert not [row for row in found.values() if row.failed]
    assert [words[:2] for words in said] == [
        ["router", "fit"], ["router", "compare"], ["data", "reading"], ["data", "build"],
        ["train", "--config"], ["export", said[-1][1]],
    ]  # fmt: skip
    assert found["reading learned: steps"].value == 10
    assert found["recall@5 on questions it was not fitted on, beside BM25"].ratio == 0.625
    settings = said[4]
    stages = json.loads(settings[settings.index("--stages") + 1])
    kept = yaml.safe_load(continual.CONFIG.read_text())["stages"]
    assert stages == [{**each, "steps": continual._STEPS} for each in kept]


def test_where_no_time_is_left_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(continual, "msa", lambda *_: "")
    bench = continual._Continual(tmp_path, tmp_path, time.monotonic())
    with pytest.raises(RankError, match="no time was left to train"):
        bench.steps()


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(RankError, match=r"msa tea failed: .*invalid choice: 'tea'"):
        continual.msa("tea")


@pytest.mark.parametrize(("code", "fails"), [(143, False), (3, True)])
def test_training_is_told_to_stop_when_the_time_is_up(code, fails, monkeypatch):
    script = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(continual, "command", lambda arguments: [sys.executable, "-c", script])
    began = time.monotonic()
    if fails:
        with pytest.raises(RankError, match="ended with code 3"):
            continual.train([], 2.0)
    else:
        continual.train([], 2.0)
    assert time.monotonic() - began < 30
