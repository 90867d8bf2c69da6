"""Whatever fails, and whoever dies, at whatever write: a bank is at a committed state, whole."""

import contextlib
import errno
import os
import random
import shutil
import signal
import time

import pytest

from data_pipeline import files, locks
from msa_train.errors import BankError
from msa_train.memory.bank.manifest import MANIFEST, building_name
from msa_train.memory.bank.verify import verify_bank
from tests.faults.bank_changes import (
    CHANGES,
    KILLED,
    Fault,
    check,
    die,
    forked,
    in_child,
    prepared,
    texts,
)
from tests.memory.building import FILES, Stopped, build, contents, flip, until

# Every point takes a minute or two; a few of them are part of every run.
EVERY = pytest.mark.parametrize(
    "step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"]
)
EVERY_OF_BUILD = pytest.mark.parametrize(
    "step", [37, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"]
)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("faults") / "bank")


@contextlib.contextmanager
def patched(fault):
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, locks):
            patch.setattr(module, "os", fault)
        yield


def full(call, *_):
    raise OSError(errno.ENOSPC, "No space left on device")


def points(bank, tmp_path, change):
    """How many changes of files a change consists of."""
    fault = Fault(0, None)
    shutil.copytree(bank, tmp_path / "count")
    with patched(fault):
        CHANGES[change].run(tmp_path / "count")
    assert fault.calls > 5
    return fault.calls


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", CHANGES)
def test_damage_outlives_every_change_and_is_found_after_it(bank, tmp_path, name, file):
    """No change copies damage under a fresh checksum: it is refused, or leaves the file alone."""
    path = shutil.copytree(bank, tmp_path / "bank")
    for damaged in (path / "segments").rglob(file):
        flip(damaged)
        with contextlib.suppress(BankError):
            CHANGES[name].run(path)
        assert any(file in problem for problem in verify_bank(path)["problems"])


@EVERY
@pytest.mark.parametrize("name", CHANGES)
def test_death_at_every_write_leaves_a_whole_bank(bank, tmp_path, name, step):
    change, before = CHANGES[name], texts(bank)
    states = [before, change.after(before)]
    for at in range(step, points(bank, tmp_path, name) + 1, step):
        path = tmp_path / f"bank-{at}"
        shutil.copytree(bank, path)

        def work(path=path, at=at):
            with patched(Fault(at, die)):
                change.run(path)

        assert in_child(work) == KILLED
        repeat_after(path, change, states)


def repeat_after(path, change, states):
    """The bank is whole after an interrupted change, and the change can be done then."""
    found = check(path, states)
    if found == states[0]:
        change.run(path)
    else:  # a repetition would be another change; any writer clears up
        CHANGES["compact"].run(path)
    check(path, [states[1]])
    assert not verify_bank(path)["orphans"]
    shutil.rmtree(path)


@EVERY
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_error_at_every_write_is_reported_and_changes_nothing(
    bank, tmp_path, name, lasting, step
):
    change, before = CHANGES[name], texts(bank)
    states = [before, change.after(before)]

    for at in range(step, points(bank, tmp_path, name) + 1, step):
        path = tmp_path / f"bank-{at}"
        shutil.copytree(bank, path)
        acknowledged = False
        with patched(Fault(at, full, lasting)):
            try:
                change.run(path)
                acknowledged = True  # the fault met what is done after the commit
            except BankError as error:
                assert "No space left" in str(error)
        if acknowledged:
            check(path, [states[1]])
        repeat_after(path, change, states)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "bank"
    build(path)
    return contents(path)


@pytest.fixture(params=["fresh", "resumed"])
def begun(request, tmp_path):
    """begun() starts tmp_path/bank anew: nothing is there, or two blocks of three are built."""
    path = tmp_path / "bank"
    kept = tmp_path / "kept"
    if request.param == "resumed":
        with pytest.raises(Stopped):
            build(path, until(7, 9))
        shutil.copytree(building_name(path), kept)

    def begin():
        for each in (path, building_name(path)):
            shutil.rmtree(each, ignore_errors=True)
        if kept.exists():
            shutil.copytree(kept, building_name(path))
        return path

    return begin


def build_points(path):
    fault = Fault(0, None)
    with patched(fault):
        build(path)
    assert fault.calls > 30
    return fault.calls


def built_after(path, whole):
    """There is no bank after an interrupted build or a whole one; once repeated, a whole one."""
    left = building_name(path)
    if (left / MANIFEST).exists():
        assert not verify_bank(left)["problems"]
    if not path.exists():
        build(path)
    assert contents(path) == whole
    assert not verify_bank(path)["problems"] and not left.exists()
    CHANGES["compact"].run(path)  # a writer that died over a complete bank is no obstacle
    assert not verify_bank(path)["orphans"]


@EVERY_OF_BUILD
def test_death_at_every_write_of_a_build_loses_nothing_that_was_finished(begun, whole, step):
    for at in range(step, build_points(begun()) + 1, step):
        path = begun()

        def work(path=path, at=at):
            with patched(Fault(at, die)):
                build(path)

        assert in_child(work) == KILLED
        built_after(path, whole)


@EVERY_OF_BUILD
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
def test_an_error_at_every_write_of_a_build_is_reported(begun, whole, lasting, step):
    for at in range(step, build_points(begun()) + 1, step):
        path = begun()
        with patched(Fault(at, full, lasting)):
            try:
                build(path)
                assert path.exists()
            except BankError as error:
                assert "No space left" in str(error)
        built_after(path, whole)


def random_build_kills(path, whole, count, seed):
    """A build, killed at random moments and started again until it is done, again and again."""
    draw = random.Random(seed)
    killed = finished = 0
    while killed < count:
        status = killed_after(draw.random() * 0.15, lambda: build(path))
        killed += status != 0
        if path.exists():
            built_after(path, whole)
            shutil.rmtree(path)
            finished += 1
    return finished


def test_a_build_survives_random_kills(tmp_path, whole):
    random_build_kills(tmp_path / "bank", whole, 10, seed=3)


@pytest.mark.slow
def test_a_build_survives_many_random_kills(tmp_path, whole):
    assert random_build_kills(tmp_path / "bank", whole, 300, seed=4) > 10


def killed_after(seconds, work):
    """Exit status of `work` in a process forked from this warm one, unless it ended in time."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status


def random_kills(bank, folder, count, seed):
    """Writers forked from this warm process, killed at random moments of random changes."""
    draw = random.Random(seed)
    path = folder / "bank"
    shutil.copytree(bank, path)
    killed = 0
    for _ in range(count):
        name = draw.choice(list(CHANGES))
        change, before = CHANGES[name], texts(path)
        if name in ("remove", "update") and not {0, 1, 2, 4, 8} <= before.keys():
            shutil.rmtree(path)
            shutil.copytree(bank, path)
            before = texts(path)
        status = killed_after(draw.random() * 0.04, lambda change=change: change.run(path))
        killed += status != 0
        acknowledged = [change.after(before)] if status == 0 else [before, change.after(before)]
        check(path, acknowledged)
    return killed


def test_a_few_random_kills(bank, tmp_path):
    assert random_kills(bank, tmp_path, 30, seed=1) > 5


@pytest.mark.slow
def test_a_thousand_random_kills(bank, tmp_path):
    assert random_kills(bank, tmp_path, 1000, seed=2) > 300
