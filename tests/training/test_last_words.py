"""Who ended a run, from what its ranks left behind."""

import os
import signal
import subprocess
import sys
from unittest.mock import Mock

from msa_train.training import last_words
from msa_train.training.last_words import LastWords, RankRecord, blamed, told

RANK = """
import pathlib, os, sys
from msa_train.training.last_words import LastWords
words = LastWords(pathlib.Path(sys.argv[1]))
def deep():
    os.kill(os.getpid(), {number})
deep()
words.end(0, "")
"""


def left_by(folder, number):
    """The record of rank 3, which sends itself a signal."""
    command = [sys.executable, "-c", RANK.format(number=int(number)), str(folder)]
    done = subprocess.run(command, env=os.environ | {"RANK": "3"}, timeout=60)
    return done.returncode, last_words.read(folder)[3]


def test_a_rank_that_a_signal_ended_has_no_end_and_its_stack(tmp_path):
    code, record = left_by(tmp_path, signal.SIGSEGV)
    assert (code, record.code) == (-signal.SIGSEGV, None)
    assert blamed(last_words.read(tmp_path)) == [record]
    said = told(record)
    assert f"rank 3 (process {record.process} on {record.host}) was killed" in said
    assert "Segmentation fault" in said and "in deep" in said


def test_a_rank_prints_its_stack_when_asked_and_lives_on(tmp_path):
    code, record = left_by(tmp_path, signal.SIGUSR1)
    assert (code, record.code) == (0, 0) and "in deep" in record.stack
    assert blamed(last_words.read(tmp_path)) == []


def test_what_is_no_record_is_left_out_and_all_is_cleared(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank-00000.json").write_text("{")
    assert last_words.read(tmp_path) == {}
    last_words.clear(tmp_path)
    assert not list((tmp_path / "ranks").iterdir())


def test_a_full_disk_does_not_keep_a_rank_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(last_words, "faulthandler", Mock())  # pytest has its own use for it
    words = LastWords(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(last_words.files, "replace_file", full)
    words.end(1, "Traceback")
    assert last_words.read(tmp_path)[0].code is None


def of(rank, code=None, ended=None, said=""):
    return RankRecord(rank, "node", 100 + rank, 0.0, code, ended, said)


def test_the_killed_are_blamed_before_those_that_missed_them():
    killed, other, missed = of(1), of(2), of(0, 1, 5.0)
    assert blamed({0: missed, 1: killed}) == [killed]
    assert blamed({0: missed, 1: killed, 2: other}) == [killed, other]
    assert blamed({0: missed, 1: killed, 2: other}, first_dead=2) == [other]


def test_the_first_error_is_blamed_and_an_end_by_sigterm_is_none():
    first, later = of(1, 1, 4.0, "Traceback\n  ZeroDivisionError"), of(0, 1, 5.0)
    assert blamed({0: later, 1: first, 2: of(2, 143, 3.0)}) == [first]
    assert "rank 1 (process 101 on node) was the first to end, with exit code 1" in told(first)
    assert "ZeroDivisionError" in told(first)
