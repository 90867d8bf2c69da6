"""A rank looks after the processes that started it."""

import os
import subprocess
import sys
import threading

import psutil
import pytest

from msa_train.training import launchers


@pytest.fixture
def other(monkeypatch):
    """A process that says it has started this one."""
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setenv(launchers.STARTED_BY, str(process.pid))
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("collected", [True, False])
def test_the_death_of_msa_train_is_seen_even_before_anybody_collects_it(other, collected):
    gone, said = threading.Event(), []
    launchers.watch(lambda why: (said.append(why), gone.set()), every_s=0.01)
    assert not gone.wait(0.2)
    other.kill()
    if collected:
        other.wait()
    assert gone.wait(20) and said == ["the launcher is gone"]


def test_a_living_one_asks(other):
    asks, asked, said = threading.Event(), threading.Event(), []
    launchers.watch(lambda why: (said.append(why), asked.set()), asks.is_set, every_s=0.01)
    assert not asked.wait(0.2)
    asks.set()
    assert asked.wait(20) and said == ["msa train was told to end"]


def test_one_that_was_dead_before_is_seen_too(monkeypatch):
    process = subprocess.Popen(["true"])
    process.wait()
    monkeypatch.setenv(launchers.STARTED_BY, str(process.pid))
    gone = threading.Event()
    launchers.watch(lambda _: gone.set())
    assert gone.wait(20)


def test_a_rank_started_by_hand_has_nobody(monkeypatch):
    monkeypatch.delenv(launchers.STARTED_BY, raising=False)
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("watches"))
    launchers.watch(lambda _: None)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-u", "-m", "deepspeed.launcher.launch", "--world_info=x"], True),
        (["/somewhere/bin/deepspeed", "--num_gpus", "2", "launch/train.py"], True),
        (["/somewhere/bin/torchrun", "--nnodes", "2", "launch/train.py"], True),
        (["-m", "torch.distributed.run", "launch/train.py"], True),
        (["-c", "deepspeed launch/train.py & sleep 9"], False),
        (["serve.py", "--like-deepspeed"], False),
    ],
)
def test_launchers_are_known_by_their_words(words, found):
    idle = [sys.executable, "-c", "import time; time.sleep(60)", *words]
    process = subprocess.Popen(idle)
    try:
        while psutil.Process(process.pid).cmdline()[-1:] != words[-1:]:  # [] at its very start
            pass
        assert launchers._launches(psutil.Process(process.pid)) is found
    finally:
        process.kill()
        process.wait()
    assert launchers._launches(psutil.Process(os.getpid())) is False
