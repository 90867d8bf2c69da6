"""Continual training of a real backbone: its steps are commands, and it stops when time is up."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from msa_train.bench.gpu import continual
from msa_train.bench.gpu.sizes import FULL
from msa_train.errors import ConfigError, RankError
from msa_train.model.config import ModelConfig

RECALL = {
    name: {f"recall@{k}": value for k in (1, 5, 16)}
    for name, value in (("fitted", 0.5), ("BM25", 0.8))
}


def answered(share):
    row = {"em": share, "f1": 2 * share, "intervals": {"em": [0.0, 0.3], "f1": [0.1, 0.6]}}
    return {
        "reading": {"q": dict.fromkeys(continual._OVER, row)},
        "corpora": {"q": {"questions": 9}},
    }


class Commands:
    """In the place of `msa` and of training. said: their words; shares: of answers, in turn."""

    def __init__(self, monkeypatch, shares=(0.1, 0.2)):
        self.said, self.seconds, self.shares = [], [], iter(shares)
        monkeypatch.setattr(continual, "msa", self.msa)
        monkeypatch.setattr(continual, "train", self.train)
        monkeypatch.setattr(
            "msa_train.interop.export.check_export", lambda folder: (ModelConfig(layers=7), {})
        )

    def msa(self, arguments, seconds):
        self.said.append([str(x) for x in arguments])
        self.seconds.append(seconds)
        if self.said[-1][1] != "answers":
            return json.dumps({"corpora": {"pydocs": {"recall": RECALL}}})
        share = next(self.shares)
        if isinstance(share, Exception):
            raise share
        return json.dumps(answered(share))

    def train(self, arguments, seconds):
        self.msa(arguments, seconds)
        lines = [{"step": 5, "loss/lm": 2.0, "active_tokens_per_s": 7.0}, {"other": 1},
                 {"step": 10, "loss/lm": 1.0, "active_tokens_per_s": 9.0}]  # fmt: skip
        folder = Path(arguments[arguments.index("--output") + 1])
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_without_a_backbone_it_says_where_to_get_one():
    with pytest.raises(ConfigError, match="make backbone"):
        next(continual.rows(FULL, None, 10.0))


def test_its_steps_are_commands_of_msa(tmp_path, monkeypatch):
    commands = Commands(monkeypatch)
    found = {row.what: row for row in continual.rows(FULL, tmp_path, 1000.0)}
    assert list(found) == [what for what, _ in continual.planned(FULL)]
    assert not [row for row in found.values() if row.failed]
    said = commands.said
    assert [words[:2] for words in said] == [
        ["router", "fit"], ["router", "compare"], ["data", "reading"], ["router", "answers"],
        ["data", "build"], ["train", "--config"], ["export", said[-2][1]], ["router", "answers"],
    ]  # fmt: skip
    assert said[3][2].endswith("/fitted") and said[7][2].endswith("/reader")
    assert found["reading learned: steps"].value == 10
    assert found["recall@5 on questions it was not fitted on, beside BM25"].ratio == 0.625
    f1 = [found[continual._answers("router_3", "f1", after)] for after in (False, True)]
    assert [(row.value, row.floor) for row in f1] == [(0.2, None), (0.4, 0.2)]
    assert f1[1].note == "0.100 to 0.600 (95 %), 9 questions"
    settings = said[5]
    stages = json.loads(settings[settings.index("--stages") + 1])
    kept = yaml.safe_load(continual.CONFIG.read_text())["stages"]
    assert stages == [{**each, "steps": continual._FULL.steps} for each in kept]
    assert json.loads(settings[settings.index("--model") + 1])["layers"] == 7
    assert settings[settings.index("--data.contexts.answers") + 1] == "protocol"


def test_asking_takes_a_share_of_the_time_and_keeps_as_much_for_asking_again(tmp_path, monkeypatch):
    commands, clock = Commands(monkeypatch), [0.0]
    monkeypatch.setattr(
        continual, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: 0.0)
    )
    answer = commands.msa
    monkeypatch.setattr(
        continual, "msa", lambda *given: (answer(*given), clock.__setitem__(0, clock[0] + 40))[0]
    )
    list(continual.rows(FULL, tmp_path, 1000.0))
    # 40 s each: fit, compare, questions, then asking; its own, once more and the shards are left.
    assert commands.seconds[3] == (1000 - 3 * 40) / 4
    assert commands.seconds[5] == 1000 - 5 * 40 - continual._RESERVE_S - continual._LONGER * 40


def test_who_cannot_be_asked_before_learns_all_the_same_and_is_not_asked_after(
    tmp_path, monkeypatch
):
    commands = Commands(monkeypatch, [RankError("too slow")])
    found = {row.what: row for row in continual.rows(FULL, tmp_path, 1000.0)}
    failed = {what for what, row in found.items() if row.failed == "RankError: too slow"}
    assert failed == {
        continual._answers(name, measure, after)
        for name in continual._OVER for measure in ("em", "f1") for after in (False, True)
    }  # fmt: skip
    assert found["reading learned: steps"].value == 10
    assert [words[1] for words in commands.said].count("answers") == 1


def test_where_no_time_is_left_nothing_is_trained(tmp_path, monkeypatch):
    commands = Commands(monkeypatch)
    bench = continual._Continual(tmp_path, tmp_path, time.monotonic())
    for _ in range(2):
        with pytest.raises(RankError, match="no time was left to train"):
            bench.steps()
    assert [words[1] for words in commands.said] == ["reading", "build"]


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(RankError, match=r"msa tea failed: .*invalid choice: 'tea'"):
        continual.msa(["tea"], 60.0)


def test_a_command_ends_with_its_time(monkeypatch):
    monkeypatch.setattr(
        continual, "command", lambda _: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    with pytest.raises(RankError, match="msa router fit was not done in 0 s: give more --minutes"):
        continual.msa(["router", "fit", "x"], 0.2)


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
