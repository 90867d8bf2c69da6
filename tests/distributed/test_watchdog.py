"""A rank that hangs or is stopped: it is named, its stack shows where, and nobody is left."""

import os
import signal
import threading
import time

import pytest

from data_pipeline.shards.build import build_shards
from msa_train.config import load_config
from msa_train.errors import StuckError
from msa_train.training import last_words
from tests.distributed.runs import logged, settings
from tests.faults.killing import start

STAGES = "[{name: main, steps: 5000, epochs: 2500, lr: 1e-3}]"
TIMEOUT_S = 12


def hang_in_data(rank):
    from data_pipeline.shards.loader import ShardLoader

    _hang(rank, 1, ShardLoader, "__next__", _asleep)


def hang_in_step(rank):
    from msa_train.training.engine import Engine

    _hang(rank, 0, Engine, "step", _deadlocked)


def hang_with_the_interpreter(rank):
    from msa_train.training.engine import Engine

    _hang(rank, 0, Engine, "step", _holding)


def _hang(rank, victim, owner, name, how):
    """The victim's 7th call of a method does not return."""
    real, calls = getattr(owner, name), []

    def method(self, *args):
        calls.append(None)
        if rank == victim and len(calls) == 7:
            how()
        return real(self, *args)

    setattr(owner, name, method)


def _asleep():
    time.sleep(600)


def _deadlocked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _holding():
    """In C, without ever letting another thread run."""
    sum(range(10**13))


@pytest.mark.parametrize(
    ("how", "rank", "function", "answers"),
    [
        pytest.param(hang_in_data, 1, "_asleep", True, id="data"),
        pytest.param(hang_in_step, 0, "_deadlocked", True, id="step", marks=pytest.mark.slow),
        pytest.param(
            hang_with_the_interpreter, 0, "_holding", False, id="gil", marks=pytest.mark.slow
        ),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path, how, rank, function, answers):
    config, run = _started(tmp_path, how)
    other = 1 - rank
    try:
        run.ranks[other].join(240)
        assert run.ranks[other].exitcode == StuckError.exit_code, _said(tmp_path)
        if not answers:
            run.kill([rank])  # as launchers do
        run.ranks[rank].join(20)
        assert run.ranks[rank].exitcode == (StuckError.exit_code if answers else -signal.SIGKILL)
    finally:
        run.kill([0, 1])
    records, said = last_words.read(config.path), _said(tmp_path)
    how_named = "is stuck" if answers else "does not answer"
    assert f"{records[rank]} {how_named}" in said and f"{records[other]} is stuck" not in said
    assert f"in {function}" in records[rank].stack and function in said
    assert "Traceback" not in said, said[-3000:]
    assert last_words.blamed(records) == [records[rank]]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_does_not_answer(tmp_path, rank):
    """Rank 0 too, which holds torch's store."""
    config, run = _started(tmp_path, None)
    try:
        deadline = time.monotonic() + 240
        while not ((config.path / "metrics.jsonl").exists() and logged(config.path)):
            assert time.monotonic() < deadline, _said(tmp_path)
            time.sleep(0.5)
        os.kill(run.ranks[rank].pid, signal.SIGSTOP)
        run.ranks[1 - rank].join(120)
        assert run.ranks[1 - rank].exitcode == StuckError.exit_code, _said(tmp_path)
        os.kill(run.ranks[rank].pid, signal.SIGCONT)
        run.ranks[rank].join(60)  # it finds the verdict, or its connections broken
        assert run.ranks[rank].exitcode == StuckError.exit_code, _said(tmp_path)
    finally:
        run.kill([0, 1])
    victim = last_words.read(config.path)[rank]
    assert f"{victim} does not answer" in _said(tmp_path)
    assert "Traceback" not in _said(tmp_path)


def _started(folder, before):
    arguments = settings(
        folder / "run", stages=STAGES, training__timeout_s=TIMEOUT_S, training__zero_stage=2
    )
    config = load_config(arguments)
    build_shards(config.corpus, config.shards, 1)
    return config, start(arguments, folder / "log", before)


def _said(folder):
    return (folder / "log").read_text()
