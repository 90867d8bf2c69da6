"""Ranks that die, fail, stall or find damage: who is named, how soon, and what goes on."""

import gc
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from msa_train.errors import BankError, ConfigError, RankError
from msa_train.memory.bank.snapshot import BankSnapshot, GenerationGoneError
from msa_train.memory.ranks import Ranks, worker_group
from msa_train.memory.ranks import ranks as driver
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.loader import BankLoader
from msa_train.memory.search.settings import TierSettings
from tests.memory.ranks import faulty_worker
from tests.memory.ranks.banks import CONFIG, add, compact, questions, write
from tests.memory.tiny import FINGERPRINT, tiny_model

ROUTER, LAYER = CONFIG.router, CONFIG.router_layers[0]
TIMEOUT_S = 30.0  # nothing here takes that long: what dies is seen at once
QUERY = questions()

DRIVER = """
from msa_train.memory.ranks import Ranks
from msa_train.memory.bank.snapshot import BankSnapshot
from tests.memory.ranks.banks import CONFIG, questions

ranks = Ranks(2, timeout_s=30).start()
searcher = ranks.searcher(BankSnapshot.open({path!r}), CONFIG.router)
group = ranks._group[0]
input()
print(group.workers[1].pid, group._folder, flush=True)
while True:
    searcher.best(CONFIG.router_layers[0], *questions(), 3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def bank(folder):
    return write(folder / "bank", [[1, 2, 3, 4], [2] * 6], removed=[2])


@pytest.fixture(scope="module", autouse=True)
def killed_driver(bank):
    """Another driver, started first: it comes up while the others are tested."""
    code = textwrap.dedent(DRIVER).format(path=str(bank.path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.fixture(scope="module")
def ranks(killed_driver):
    """Rank 1 holds everything. As many restarts as the tests need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "MODULE", faulty_worker.__name__)
        patch.setattr(driver, "RESTARTS", 1000)
        ranks = Ranks(2, (0, 1), timeout_s=TIMEOUT_S).start()
        yield ranks
        ranks.close()


@pytest.fixture(scope="module")
def searcher(ranks, bank):
    return ranks.searcher(bank, ROUTER)


def pid_of(ranks):
    return ranks._group[0].workers[1].pid


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # adopted by a process that does not ask for its end


def right(searcher, bank):
    gc.collect()  # snapshots of earlier tests are let go of now, not in the request that is to fail
    found = searcher.best(LAYER, *QUERY, 3)
    expected = BankLoader(TierSettings()).searcher(bank, ROUTER).best(LAYER, *QUERY, 3)
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.scores, expected.scores)


def fails(pid, pattern, request, within=TIMEOUT_S / 2):
    """The request fails in time, the error names the rank, and nothing of the process is left."""
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        request()
    assert time.monotonic() - start < within
    message = str(caught.value)
    assert re.search(rf"rank 1 \(process {pid}\)", message), message
    assert re.search(pattern, message, re.DOTALL), message
    assert gone(pid)


def test_a_killed_rank_is_named_and_started_again(ranks, searcher, bank, folder):
    changing = write(folder / "changing", [[1, 2], [3, 3]], removed=[1])
    old = ranks.searcher(changing, ROUTER)
    new = ranks.searcher(compact(changing.path), ROUTER)
    before = old.best(LAYER, *QUERY, 3)
    pid = pid_of(ranks)
    os.kill(pid, signal.SIGKILL)
    fails(pid, rf"SIGKILL.*searching layer {LAYER} of {bank.path}, generation",
          lambda: searcher.best(LAYER, *QUERY, 3))  # fmt: skip
    right(searcher, bank)
    assert pid_of(ranks) != pid
    # What a bank no longer has cannot be opened again; that concerns nobody else.
    with pytest.raises(GenerationGoneError, match="open the bank again"):
        old.best(LAYER, *QUERY, 3)
    assert torch.equal(new.best(LAYER, *QUERY, 3).scores, before.scores)


def test_a_stopped_rank_is_named_in_time_and_started_again(ranks, searcher, bank, monkeypatch):
    right(searcher, bank)
    pid = pid_of(ranks)
    monkeypatch.setattr(ranks._group[0], "_timeout_s", 2.0)
    os.kill(pid, signal.SIGSTOP)
    fails(pid, f"did not answer within 2 s: searching layer {LAYER}",
          lambda: searcher.best(LAYER, *QUERY, 3))  # fmt: skip
    right(searcher, bank)


@pytest.mark.parametrize(
    ("k", "pattern"),
    [
        (faulty_worker.RAISES, "failed .*RuntimeError: as it was asked to"),
        pytest.param(
            faulty_worker.DIES_BEFORE_SENDING, "SIGKILL.*reading layer", marks=pytest.mark.slow
        ),
        pytest.param(faulty_worker.SLEEPS, "did not answer", marks=pytest.mark.slow),
        pytest.param(faulty_worker.STOPS_BEFORE_SENDING, "reading", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_at_work_is_named(ranks, searcher, bank, monkeypatch, k, pattern):
    right(searcher, bank)
    if k in (faulty_worker.SLEEPS, faulty_worker.STOPS_BEFORE_SENDING):
        monkeypatch.setattr(ranks._group[0], "_timeout_s", 2.0)

    def request():
        searcher.best(LAYER, *QUERY, k)
        searcher.states(LAYER, torch.tensor([0, 5]))

    fails(pid_of(ranks), pattern, request)


def test_an_abandoned_answer_is_never_the_next_ones(ranks, searcher, bank, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    right(searcher, bank)
    pid = pid_of(ranks)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(searcher.own, "best", interrupted)
        other = questions(seed=77)
        searcher.best(LAYER, *other, 3)
    assert gone(pid)
    right(searcher, bank)


def test_damage_that_a_rank_finds_stops_nobody(ranks, searcher, bank, folder):
    damaged = write(folder / "damaged", [[2, 2, 2]])
    segment = damaged.segments[0].folder
    ours = ranks.searcher(damaged, ROUTER)
    pid = pid_of(ranks)
    with open(segment / f"layer-{LAYER}.k", "r+b") as file:
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(BankError, match=rf"rank 1 \(process {pid}\).*K or V of document 0"):
        ours.states(LAYER, torch.tensor([0, 2]))
    assert len(ours.states(LAYER, torch.tensor([1, 2])).k) == 4  # these are whole
    with open(segment / f"layer-{LAYER}.key", "r+b") as file:
        file.write(b"\x00\x01\x02\x03")
    del ours
    gc.collect()
    with pytest.raises(BankError, match=rf"rank 1 \(process {pid}\).*was changed"):
        ranks.searcher(BankSnapshot.open(damaged.path), ROUTER)
    right(searcher, bank)
    assert pid_of(ranks) == pid


def test_a_bank_compacted_between_two_ranks_is_opened_again(ranks, folder):
    path = folder / "racing"
    write(path, [[1, 2], [3, 3]], removed=[1])

    class Racing:
        def searcher(self, bank, router):
            if bank.manifest.generation < 4:
                compact(path)
            return ranks.searcher(bank, router)

    served = LiveBank(path, tiny_model(), FINGERPRINT, ranks=Racing())
    assert served.bank.manifest.removed is None and len(served.bank.segments) == 1
    add(path, [1])
    assert len(served.view) == 4
    assert torch.equal(served.view.numbers, BankSnapshot.open(path).numbers)


def test_workers_go_with_their_driver(killed_driver):
    print(file=killed_driver.stdin, flush=True)  # it searches from now on
    pid, folder = killed_driver.stdout.readline().split()
    assert not gone(pid) and Path(folder).exists()
    killed_driver.kill()
    killed_driver.wait()
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)
    assert not Path(folder).exists()


def test_restarts_end_with_the_reason(monkeypatch, bank):
    monkeypatch.setattr(worker_group, "MODULE", "msa_train.memory.ranks.nowhere")
    monkeypatch.setattr(driver, "RESTARTS", 2)
    ranks = Ranks(2, device="cpu")
    for _ in range(2):
        with pytest.raises(RankError, match="No module named"):
            ranks.searcher(bank, ROUTER)
    for _ in range(2):
        with pytest.raises(RankError, match=r"(?s)restarted 2 times within 600 s.*No module named"):
            ranks.searcher(bank, ROUTER)


def test_closed_ranks_say_so(ranks, bank):
    other = Ranks(1).start()
    searcher = other.searcher(bank, ROUTER)
    other.close()
    with pytest.raises(RankError, match="closed"):
        searcher.best(LAYER, *QUERY, 3)


@pytest.mark.slow
def test_random_signals_never_give_a_wrong_answer(ranks, searcher, bank):
    """kill -9 and SIGSTOP at random moments: every request is right, or fails in time."""
    rng = random.Random(0)
    failed = 0
    for _ in range(12):
        right(searcher, bank)
        pid, sent = pid_of(ranks), rng.choice([signal.SIGKILL, signal.SIGSTOP])
        at = f"sleep {rng.uniform(0, 0.05)}; kill -{int(sent)} {pid}"
        killer = subprocess.Popen(["sh", "-c", at])
        ranks._group[0]._timeout_s = 1.0
        start = begin = time.monotonic()
        try:
            while time.monotonic() - start < 0.5:
                begin = time.monotonic()
                right(searcher, bank)
                searcher.states(LAYER, torch.tensor([0, 5, 7]))
        except RankError as error:
            assert f"process {pid}" in str(error) and gone(pid)
            assert time.monotonic() - begin < TIMEOUT_S / 2
            failed += 1
        killer.wait()
    assert failed > 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "ranks is 0"),
        ({"count": 2, "shares": (1,)}, "for 2 ranks"),
        ({"count": 2, "shares": (0, 0)}, "not all 0"),
        ({"count": 2, "shares": (1, -1)}, "0 or more"),
        ({"count": 2, "device": "cuda"}, "GPUs"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    if "device" in settings and torch.cuda.device_count() > 1:
        pytest.skip("there are two GPUs")
    with pytest.raises(ConfigError, match=message):
        Ranks(**settings)
