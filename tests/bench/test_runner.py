"""Processes of their own, timing in turns, and what memory is counted."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from msa_train.bench.runner import (
    Workers,
    _sendable,
    in_process,
    in_turns,
    process_bytes,
    tensors_mb,
)
from msa_train.errors import ConfigError, RankError


def times(factor):
    return partial(multiplied, factor)


def multiplied(factor, number):
    if number < 0:
        raise ConfigError(f"{number} is below 0")
    return factor * number, os.getpid(), torch.get_num_threads()


class Local(Exception):
    """Cannot be pickled and read back: it wants two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def prints_and_allocates(megabytes):
    print("a library prints")
    held = bytearray(megabytes << 20)
    return len(held), process_bytes()["peak"]


def test_a_call_has_a_process_and_a_peak_of_its_own(capfd):
    held = bytearray(600 << 20)  # more than a process with torch takes
    size, peak = in_process(prints_and_allocates, 100)
    assert len(held) < process_bytes()["peak"]
    assert size == 100 << 20 < peak < len(held)
    captured = capfd.readouterr()
    assert captured.out == "" and "a library prints" in captured.err


def test_workers_are_asked_all_at_once_and_stay_until_one_fails():
    with Workers("rank", [partial(times, 2), partial(times, 3)], threads=1) as workers:
        first, again = workers.ask(7), workers.ask(1)
        assert [each[0] for each in first] == [14, 21] and [each[0] for each in again] == [2, 3]
        assert [each[1:] for each in first] == [each[1:] for each in again]
        assert {each[2] for each in first} == {1}
        assert len({os.getpid(), *(each[1] for each in first)}) == 3
        with pytest.raises(ConfigError, match="-1 is below 0"):
            workers.ask(-1)
        with pytest.raises(RankError, match="process of rank 0 of 2 died"):
            for process in workers.processes:
                process.join()
            workers.ask(1)


def test_a_process_that_dies_is_named():
    with pytest.raises(RankError, match="process of exit died"):
        in_process(os._exit, 3)


def test_an_error_that_cannot_travel_is_told():
    mine = ConfigError("steps is 0")
    assert _sendable(mine) is mine
    told = _sendable(Local(1, 2))
    assert isinstance(told, RankError) and "Local: 1 and 2" in str(told)


def test_a_row_that_takes_too_long_is_named(monkeypatch):
    monkeypatch.setattr("msa_train.bench.runner.TIMEOUT_S", 0.0)
    with pytest.raises(RankError, match="multiplied was not done in 0 s"):
        in_process(multiplied, 2, 3)


def test_answers_have_a_time_limit_of_their_own():
    with (
        pytest.raises(RankError, match="one was not done in 0 s"),
        Workers("one", [sleeper], threads=1) as workers,
    ):
        workers.ask(0.0)
        workers.timeout_s = 0.4
        workers.ask(600.0)


def sleeper():
    return time.sleep


def starts_another():
    return subprocess.Popen(["sleep", "600"]).pid


def test_what_a_process_started_ends_with_it():
    with Workers("one", [starting], threads=1) as workers:
        [number] = workers.ask()
        assert os.path.exists(f"/proc/{number}")
    _ended(number)


def _ended(number):
    for _ in range(100):  # a zombie has no command line
        path = Path(f"/proc/{number}/cmdline")
        if not path.exists() or not path.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError("it goes on")


def works_in_a_folder(parent):
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        (Path(folder) / "processes").write_text(f"{os.getpid()} {starts_another()}")
        time.sleep(600)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_whoever_asked_may_be_killed_and_nothing_is_left(tmp_path, number):
    asked = subprocess.Popen(
        [sys.executable, "-c", "import sys; from tests.bench.test_runner import *; "
         "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's `&` ignores it
         "in_process(works_in_a_folder, sys.argv[1])", str(tmp_path)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found = ""
    while not found:
        assert asked.poll() is None
        found = "".join(file.read_text() for file in tmp_path.glob("*/processes"))
        time.sleep(0.05)
    asked.send_signal(number)
    asked.wait(60)
    for each in map(int, found.split()):
        _ended(each)
    assert not list(tmp_path.iterdir())


def starting():
    return starts_another


def test_a_clock_may_be_chosen():
    ticks = iter(range(100))
    found = in_turns({"a": lambda: None}, 2, lambda: next(ticks))
    assert found == {"a": [1e3, 1e3]}


def test_sides_are_timed_in_turns_after_a_warm_up():
    seen = []
    found = in_turns({name: partial(seen.append, name) for name in "ab"}, 2)
    assert seen == ["a", "b"] * 3
    assert list(found) == ["a", "b"] and all(len(each) == 2 for each in found.values())
    assert all(ms >= 0 for each in found.values() for ms in each)


def test_tensor_memory_counts_what_is_alive_together():
    megabyte = 1 << 18  # float32 values

    def alternate():
        for _ in range(4):
            torch.ones(2 * megabyte)

    def together():
        return [torch.ones(2 * megabyte) for _ in range(4)]

    assert 1.9 < tensors_mb(alternate) < 2.1
    assert 7.9 < tensors_mb(together) < 8.1
