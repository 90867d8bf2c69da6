"""An owner on this machine is known by its file lock, one on another by its count alone."""

import multiprocessing
import os
import threading
import time

import pytest

from data_pipeline import leases
from data_pipeline.leases import Lease, living
from data_pipeline.locks import HeldError


@pytest.fixture
def elsewhere(monkeypatch):
    """Whoever is made from now on is on another machine than who was there."""

    def move():
        monkeypatch.setattr(leases, "machine", lambda: "another")

    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    return move


def test_one_that_lives_is_named_at_once(tmp_path):
    began = time.monotonic()
    with Lease(tmp_path, "work", "a test") as lease:
        with pytest.raises(HeldError, match=rf"process {os.getpid()} on .* \(a test, since 2"):
            Lease(tmp_path, "work", "a test")
        Lease(tmp_path, "other", "a test").release()
        lease.check()
    assert Lease(tmp_path, "work", "a test").dead is None, "it was released"
    assert time.monotonic() - began < leases.BEAT_S


def _hold(folder, held):
    Lease(folder, "work", "a test")
    held.set()
    time.sleep(60)


def test_one_that_was_killed_here_is_followed_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(30)
    process.kill()
    process.join(10)
    began = time.monotonic()
    with Lease(tmp_path, "work", "a test") as lease:
        assert f"process {process.pid} on" in lease.dead
    assert time.monotonic() - began < leases.BEAT_S
    assert [path.name for path in tmp_path.iterdir()] == [".work.lease-000002"]


def test_one_elsewhere_lives_while_it_counts(tmp_path, elsewhere):
    with Lease(tmp_path, "work", "a test"):
        elsewhere()
        for _ in range(3):
            with pytest.raises(HeldError, match="a test"):
                Lease(tmp_path, "work", "a test")


def test_one_elsewhere_that_stands_still_is_followed_once(tmp_path, elsewhere, capsys):
    """Of several that wait for its end one; the clock in its file means nothing."""
    lease = Lease(tmp_path, "work", "a test")
    lease._released.set()
    lease._thread.join()  # it counts no more
    elsewhere()
    assert living(tmp_path, ["work", "none"]) is None
    assert "waiting 1 s for a sign of life of process" in capsys.readouterr().err
    found = []

    def follow():
        try:
            found.append(Lease(tmp_path, "work", "another test"))
        except HeldError as error:
            found.append(str(error))

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (new,) = (each for each in found if isinstance(each, Lease))
    others = [each for each in found if each is not new]
    assert len(others) == 3 and all("another test" in said for said in others)
    assert "(a test, " in new.dead
    with pytest.raises(HeldError, match="another test"):
        lease.check()
    new.release()


def test_one_that_was_dead_finds_those_after_it_whichever_are_gone(tmp_path, elsewhere):
    lease = Lease(tmp_path, "work", "a test")
    lease._released.set()
    lease._thread.join()
    elsewhere()
    Lease(tmp_path, "work", "a second test").release()
    with Lease(tmp_path, "work", "a third test"):
        assert [path.name for path in tmp_path.iterdir()] == [".work.lease-000003"]
        with pytest.raises(HeldError, match="a third test"):
            lease.check()


@pytest.mark.parametrize("quicker", [1, 2])
def test_nobody_is_followed_who_was_not_found_dead(tmp_path, monkeypatch, quicker):
    """Between the look and the file of the next number others were there."""
    real, others = leases.living, []

    def slow(*given):
        found = real(*given)
        monkeypatch.setattr(leases, "living", real)
        for _ in range(quicker):
            for other in others:
                other.release()
            others.append(Lease(tmp_path, "work", "a quicker test"))
        return found

    monkeypatch.setattr(leases, "living", slow)
    with pytest.raises(HeldError, match="a quicker test"):
        Lease(tmp_path, "work", "a test")
    others[-1].check()
    assert [path.name for path in tmp_path.iterdir()] == [f".work.lease-{quicker:06d}"]


def test_one_that_has_just_begun_is_named_once_it_has_said_who_it_is(tmp_path, monkeypatch):
    real, write = leases.living, Lease._write
    seen = threading.Event()

    def late(self, **more):
        seen.wait(10)
        write(self, **more)

    def begun(*given):
        """Another makes its file after the look, and writes to it after ours was refused."""
        found = real(*given)
        monkeypatch.setattr(leases, "living", real)
        monkeypatch.setattr(Lease, "_write", late)
        thread.start()
        while not (tmp_path / ".work.lease-000001").exists():
            time.sleep(0.001)
        threading.Timer(0.05, seen.set).start()
        return found

    others = []
    thread = threading.Thread(target=lambda: others.append(Lease(tmp_path, "work", "a late test")))
    monkeypatch.setattr(leases, "living", begun)
    with pytest.raises(HeldError, match="a late test"):
        Lease(tmp_path, "work", "a test")
    thread.join(10)
    others[0].release()
