"""Who is to blame when ranks stand still."""

import threading
from unittest.mock import Mock

import pytest

from msa_train.training import watchdog
from msa_train.training.last_words import RankRecord
from msa_train.training.watchdog import Watchdog, Whereabouts, judge

RECORDS = {rank: RankRecord(rank, f"host{rank}", 100 + rank, 0.0) for rank in range(3)}


def answer(phases, collectives):
    return Whereabouts(phases, collectives, "reading data", "read (shards.py:7)")


@pytest.mark.parametrize(
    ("answers", "stuck", "teller"),
    [
        ({0: (8, 5), 1: (7, 5), 2: (8, 6)}, [1], 0),  # in an earlier phase
        ({0: (8, 5), 1: (8, 7), 2: (8, 7)}, [0], 1),  # not in the operation the others wait in
        ({0: (8, 7), 1: (7, 5)}, [2], 0),  # no answer says more than being behind
        ({0: (8, 7), 1: (8, 7), 2: (8, 7)}, [0, 1, 2], 0),
    ],
)
def test_the_rank_that_holds_up_the_others_is_named(answers, stuck, teller):
    found = judge(RECORDS, {rank: answer(*mark) for rank, mark in answers.items()}, 30.0)
    assert (found.ranks, found.teller) == (stuck, teller)
    for rank, record in RECORDS.items():
        assert (str(record) in found.said) == (rank in stuck)
    assert ("does not answer" in found.said) == (len(answers) < 3)
    assert ("network" in found.said) == (len(stuck) == 3)
    assert "30 s (training.timeout_s)" in found.said


def test_an_answer_to_a_question_that_was_withdrawn_is_not_kept(tmp_path, monkeypatch):
    """Else a rank that is stopped an hour later would seem to have answered."""
    words = Mock(beside=lambda suffix: tmp_path / f"own{suffix}")
    dog = Watchdog(tmp_path, words, timeout_s=100, collectives=lambda: 0)
    asked, answer = watchdog._asked(tmp_path), tmp_path / "own.answer"
    asked.parent.mkdir()
    for _ in range(2):
        asked.touch()
        dog._step(0.0, False)
        assert answer.exists()
        asked.unlink()
        dog._step(0.0, False)
        assert not answer.exists()


def test_two_ranks_that_asked_and_go_on_both_keep_their_watchdog(tmp_path, monkeypatch):
    """One of them removes the question before the other does."""
    monkeypatch.setattr(watchdog, "faulthandler", Mock())  # pytest has its own use for it
    looked, removing, goes_on = (threading.Event() for _ in range(3))

    def remove(path):
        removing.set()
        raise FileNotFoundError(path)

    def step(idle_s, asks):
        looked.set()
        if removing.is_set():
            goes_on.set()
        return True

    monkeypatch.setattr(watchdog.files, "remove", remove)
    dog = Watchdog(tmp_path, Mock(), timeout_s=1, collectives=lambda: 0)
    monkeypatch.setattr(dog, "_step", step)
    dog.start()
    assert looked.wait(20)
    dog.beat()
    assert goes_on.wait(20) and removing.is_set()
    dog.stop()
