"""The parts of a start add up, and are told once."""

import time

from msa_train.training.startup import STARTED_AT, StartUp


def test_parts_are_told_once(monkeypatch):
    monkeypatch.setenv(STARTED_AT, str(time.time() - 1000))
    starting = StartUp()
    starting.ends("imports")
    starting.finish("first_step")
    starting.ends("later")
    parts = starting.take()
    assert list(parts) == ["start/launcher_s", "start/imports_s", "start/first_step_s"]
    assert 999 < sum(parts.values()) < 1100 and starting.take() == {}
