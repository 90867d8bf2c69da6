"""Search workers as a group: they start or are named, and no answer is taken for another's."""

import pytest
import torch

from msa_train.errors import BankError, RankError
from msa_train.memory.ranks import Ranks, worker_group
from msa_train.memory.ranks.worker_group import Call, WorkerGroup

DROP = {"do": "drop", "snapshots": []}


def test_a_part_that_fails_here_leaves_the_group_as_good_as_before():
    def fails():
        raise BankError("damaged")

    settings = {"shares": (1.0, 1.0, 1.0), "tiers": {}}
    group = WorkerGroup(3, torch.device("cpu"), settings, 60.0, 300.0)
    try:
        everyone = Call(DROP, "letting go", {1: {}, 2: {}})
        with pytest.raises(BankError, match="damaged"):
            group.ask(everyone, fails)
        mine, answers = group.ask(everyone, lambda: "mine")
        assert mine == "mine" and sorted(answers) == [1, 2]
        assert answers[1].head == {"number": 2}  # of the second request
        unknown = Call({"do": "best", "snapshot": 7, "layer": 0, "k": 1}, "searching", {2: {}})
        with pytest.raises(RankError, match=r"(?s)rank 2 .*failed \(searching\).*Error"):
            group.ask(unknown, lambda: None)
    finally:
        group.close()
    assert all(worker.exit_code() is not None for worker in group.workers.values())


def test_a_worker_that_cannot_start_is_named_with_what_it_said(monkeypatch):
    monkeypatch.setattr(worker_group, "MODULE", "msa_train.memory.ranks.nowhere")
    with pytest.raises(
        RankError, match=r"(?s)rank 1 .*ended with code 1.*No module named .*nowhere"
    ):
        Ranks(2, timeout_s=60).start()


def test_a_worker_that_never_comes_up_is_named(monkeypatch):
    monkeypatch.setattr(worker_group, "MODULE", "http.server")  # waits for what never comes
    with pytest.raises(RankError, match=r"rank [12] .*\(start_timeout_s, .* gives more"):
        Ranks(3, timeout_s=5, start_timeout_s=0.5).start()
