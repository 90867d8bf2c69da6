"""A worker process: it answers, ends as it is told, and its driver says what became of it."""

import fcntl
import os
import signal
import time

import pytest
import torch

from data_pipeline.errors import DataError
from msa_train.errors import BankError, MSAError, RankError
from msa_train.memory.bank.lock import BusyError
from msa_train.memory.ranks.worker_process import (
    Deadline,
    Worker,
    raised_error,
    ready,
    replies,
    told_error,
)
from tests.memory.ranks import scripted_worker


@pytest.fixture
def worker(tmp_path):
    """One that holds a locked file."""
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    worker = Worker(3, scripted_worker.__name__, 1, keep=[descriptor])
    os.close(descriptor)
    yield worker
    worker.kill()


def soon(doing="a test"):
    return Deadline.of(doing, 120.0, "patience")


def asked(worker, **head):
    worker.send({"number": 1, **head}, {"given": torch.arange(3)}, soon())


def locked(tmp_path):
    with open(tmp_path / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_it_answers_until_it_is_killed_and_holds_what_it_was_given(worker, tmp_path):
    asked(worker)
    reply = replies([worker], 1, soon())[3]
    assert reply.head == {"number": 1, "ignores": True, "threads": "1"}
    assert reply.tensors["given"].tolist() == [0, 1, 2]
    asked(worker, number=2)
    with pytest.raises(RankError, match=r"rank 3 .*answered another request \(a test\)"):
        replies([worker], 1, soon())
    asked(worker, crash="as it says")
    with pytest.raises(RankError, match=r"(?s)rank 3 .*failed \(a test\):.*as it says"):
        replies([worker], 1, soon())
    asked(worker, sleeps=60)
    assert not ready([worker], 0.05) and worker.exit_code(0.05) is None
    late = Deadline.of("a nap", 0.05, "patience")
    with pytest.raises(
        RankError, match=rf"rank 3 \(process {worker.pid}\) did not .* 0.05 s: a nap"
    ):
        replies([worker], 1, late)
    assert locked(tmp_path)
    worker.kill()
    assert not locked(tmp_path) and worker.exit_code() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["raises", "killed", "stopped"])
def test_its_end_is_told_with_its_last_lines(worker, how):
    asked(worker, says="before the end")
    assert worker.receive(soon()).head["says"] == "before the end"
    if how == "raises":
        asked(worker, raises="no way on")
        said = r"ended with code 1; its last lines:\n  before the end\n.*ValueError: no way on"
    elif how == "killed":
        os.kill(worker.pid, signal.SIGKILL)
        said = r"was killed by SIGKILL; its last lines:\n  before the end"
    else:
        os.kill(worker.pid, signal.SIGSTOP)
        began = time.monotonic()
        worker.kill()
        assert time.monotonic() - began < 10
        return
    with pytest.raises(RankError, match=rf"(?s)rank 3 \(process {worker.pid}\) {said}"):
        worker.receive(soon())
    with pytest.raises(RankError, match=said.split(";")[0]):
        worker.send({}, {"large": torch.zeros(10**6)}, soon())


@pytest.mark.parametrize(
    "error", [BankError("damaged"), BusyError("busy"), DataError("line 3"), OSError(28, "full")]
)
def test_errors_that_are_told_are_the_same_when_raised(error):
    found = raised_error(told_error(error), "rank 1: ")
    assert str(found) == f"rank 1: {error}"
    if isinstance(error, BusyError):  # of a module that the table does not know
        assert type(found) is MSAError
    else:
        assert type(found) is type(error)
    assert isinstance(raised_error(told_error(FileNotFoundError(2, "gone"))), OSError)
