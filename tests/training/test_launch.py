"""How ranks are started: the launcher's command and environment, and what its end means."""

import os
import signal
import sys

import pytest
import torch

from msa_train.errors import ConfigError, RankError
from msa_train.training import launch as launching
from tests.distributed.runs import settings


class Launcher:
    """DeepSpeed's launcher, which ends at once with `code`."""

    code, started = 0, None
    pid = os.getpid()

    def __init__(self, command, env):
        type(self).started = command, env

    def wait(self):
        return self.code


@pytest.fixture
def start(monkeypatch, shards, tmp_path):
    monkeypatch.setattr(launching.subprocess, "Popen", Launcher)
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    arguments = settings(tmp_path / "run", training__shards=shards)
    return lambda ranks=2, resume=False: launching.launch(arguments, ranks, resume)


def test_no_rank_at_all_is_refused(start):
    with pytest.raises(ConfigError, match="--ranks is 0: give 1 or more"):
        start(0)


def test_the_launcher_starts_the_trainer_on_every_rank(start, monkeypatch):
    monkeypatch.setattr(Launcher, "code", 10)
    assert start(2, resume=True) == 10
    command, environment = Launcher.started
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[command.index("--num_gpus") + 1] == "2"
    assert command[command.index("--module") + 1] == launching.MODULE
    assert command[-1] == "--resume"
    assert environment["PATH"].startswith(os.path.dirname(sys.executable))
    if not torch.cuda.is_available():
        assert environment["DS_ACCELERATOR"] == "cpu" and int(environment["OMP_NUM_THREADS"]) >= 1


def test_an_end_before_the_last_step_is_an_error(start, monkeypatch):
    monkeypatch.setattr(Launcher, "code", 0)
    with pytest.raises(RankError, match=r"step 0 of 4 without an error.*--resume"):
        start()
    assert "--resume" not in Launcher.started[0]
    monkeypatch.setattr(launching.checkpoint_folders, "last_step", lambda folder: 4)
    assert start() == 0


def test_settings_are_checked_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(launching.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match="zero_stage"):
        launching.launch(["--training.zero_stage", "7"], 1, False)


def test_a_schedulers_signal_goes_to_the_ranks(start, monkeypatch):
    handlers = {}
    monkeypatch.setattr(launching.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(launching.checkpoint_folders, "last_step", lambda folder: 4)
    stopped = []
    monkeypatch.setattr(launching, "_stop_ranks", stopped.append)
    assert start() == 0
    handlers[signal.SIGTERM]()
    assert stopped == [Launcher.pid]


@pytest.mark.parametrize(
    ("ranks", "parallel", "said"),
    [(3, 1, "training.batch_samples is 2, which 3 data-parallel"), (3, 2, "--ranks is 3, which")],
)
def test_ranks_that_cannot_share_a_step_are_refused_before_they_start(
    start, shards, tmp_path, monkeypatch, ranks, parallel, said
):
    monkeypatch.setattr(launching.subprocess, "Popen", None)
    arguments = settings(
        tmp_path / "run",
        training__shards=shards,
        training__batch_samples=2,
        training__tensor_parallel=parallel,
    )
    with pytest.raises(ConfigError, match=said):
        launching.launch(arguments, ranks, False)
