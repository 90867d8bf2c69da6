"""Which ends of a run are followed by another start, how often, and how the others are told."""

import json
import os
import signal
import subprocess
from unittest.mock import Mock

import pytest

from msa_train import checkpoint_folders
from msa_train.errors import ConfigError, RankError, StuckError
from msa_train.training import last_words, restarts
from msa_train.training.last_words import LastWords
from msa_train.training.restarts import Deaths, End, Restarts
from tests.training.test_last_words import of

KILLED = {0: of(0, 1, 5.0, "Connection reset"), 1: of(1)}


def ended(code, records, stopped=0):
    return End(code, stopped, records, None, reached=3, steps=9)


@pytest.mark.parametrize(
    ("end", "again"),
    [
        (ended(1, KILLED), True),
        (ended(247, KILLED), True),
        (ended(-9, {0: of(0, 143, 1.0)}), True),  # the launcher; its ranks saved and ended
        (ended(0, {0: of(0, 143, 1.0)}), True),
        (ended(1, {0: of(0, 1, 1.0, "Traceback")}), True),
        (ended(8, {0: of(0, 8, 1.0, "rank 1 is late")}), True),
        (ended(14, {0: of(0, 14, 1.0, "rank 0 is stuck"), 1: of(1, 14, 2.0)}), True),
        (ended(14, {0: of(0, 14, 1.0, "rank 1 does not answer"), 1: of(1)}), True),
        (ended(2, {0: of(0, 2, 1.0, "a setting")}), False),
        (ended(10, {0: of(0, 10, 1.0, "diverged")}), False),
        (ended(11, {0: of(0, 11, 1.0, "disk full")}), False),
        (ended(143, {0: of(0, 143, 1.0)}), False),
        (ended(143, KILLED, stopped=signal.SIGTERM), False),
        (ended(2, {}), False),
        (ended(8, {}), True),  # one that died did not come back
        (ended(255, {}), True),  # nor does its machine answer
        (ended(143, {}, stopped=signal.SIGTERM), False),
        (End(0, 0, {0: of(0, 0, 1.0)}, None, reached=9, steps=9), False),
    ],
)
def test_a_death_is_followed_by_a_start_and_nothing_else_is(end, again):
    assert end.by_death is again


def test_an_end_that_is_not_followed_is_told(capsys):
    with pytest.raises(RankError, match=r"rank 1 \(process 101 on node\) was killed"):
        ended(247, KILLED).result()
    with pytest.raises(RankError, match="step 3 of 9 without an error"):
        ended(-9, {0: of(0, 143, 1.0)}).result()
    assert ended(1, {0: of(0, 1, 1.0, "ZeroDivisionError")}).result() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert ended(10, {0: of(0, 10, 1.0, "diverged")}).result() == 10
    assert capsys.readouterr().err == "", "the rank has said it"
    with pytest.raises(StuckError, match=r"rank 1 \(process 101 on node\) was killed or stopped"):
        ended(14, {0: of(0, 14, 1.0), 1: of(1)}).result()
    assert ended(14, {0: of(0, 14, 1.0, "stuck"), 1: of(1, 14, 2.0)}).result() == 14
    assert capsys.readouterr().err == "", "it has said it too"
    assert ended(143, {}, stopped=signal.SIGINT).result() == 130


def checkpoint(output, step, flaw=None):
    folder = output / "checkpoints" / checkpoint_folders.name_of(step)
    folder.mkdir(parents=True)
    seal = {"step": step, "flaw": flaw, "files": {}}
    (folder / checkpoint_folders.SEAL).write_text(json.dumps(seal))


def test_restarts_without_a_new_checkpoint_are_counted(tmp_path, monkeypatch, capsys):
    pauses = []
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)
    policy, death = Restarts(2, tmp_path), ended(247, KILLED)
    assert policy.another(death)
    said = capsys.readouterr().err
    assert "rank 1 (process 101 on node) was killed" in said
    assert "restart 1 of 2, from the start: there is no checkpoint" in said
    assert policy.another(death) and pauses == [5.0]
    checkpoint(tmp_path, 40)
    assert policy.another(death) and pauses == [5.0], "it has come further: counted anew"
    assert "restart 1 of 2, from" in (said := capsys.readouterr().err) and "step-000000040" in said
    checkpoint(tmp_path, 60, flaw=checkpoint_folders.SKIPPED)  # nothing goes on from it
    assert policy.another(death) and not policy.another(death)
    assert "given up after 2 restarts without a new checkpoint" in capsys.readouterr().err


def test_ranks_that_do_not_come_are_waited_for_once_they_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restarts.time, "sleep", lambda seconds: None)
    none, policy = ended(8, {}), Restarts(2, tmp_path)
    assert not policy.another(none), "which is for the user to look into"
    assert policy.another(ended(247, KILLED)) and policy.another(none) and not policy.another(none)
    assert "the ranks did not all come: exit code 8\nrestart 2 of 2" in capsys.readouterr().err


def test_none_is_asked_for_or_less(tmp_path, capsys):
    assert not Restarts(0, tmp_path).another(ended(247, KILLED))
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="--max-restarts is -1"):
        Restarts(-1, tmp_path)


def test_the_first_dead_of_this_machine_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(last_words, "faulthandler", Mock())  # pytest has its own use for it
    LastWords(tmp_path)  # of the start before
    deaths = Deaths(tmp_path, ranks=2)
    deaths.look()
    assert deaths.records() == {} and deaths.first is None
    last_words.clear(tmp_path)
    other = subprocess.Popen(["sleep", "60"])
    for rank, process in enumerate((os.getpid(), other.pid)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(last_words.os, "getpid", lambda process=process: process)
        LastWords(tmp_path)
    deaths.look()
    assert deaths.first is None
    other.kill()  # and nobody has collected it
    while deaths.first is None:
        deaths.look()
    assert deaths.first == 1 and len(deaths.records()) == 2
    other.wait()
