"""Hostfiles and --include, as DeepSpeed's launcher reads them."""

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.parallel.slots import ranks_here, replicas_of, slots_of


@pytest.fixture
def hostfile(tmp_path):
    (file := tmp_path / "hosts").write_text("# ours\none slots=2\n\ntwo slots=3\n")
    return file


@pytest.mark.parametrize(
    ("include", "found"),
    [
        ("", {"one": [0, 1], "two": [0, 1, 2]}),
        ("two", {"two": [0, 1, 2]}),
        ("two:2,0@one:1", {"one": [1], "two": [0, 2]}),
    ],
)
def test_slots_of_hosts(hostfile, include, found):
    assert slots_of(hostfile, include) == found


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ("three", r"--include three: .*three.*; there are one slots=2, two slots=3"),
        ("one:2", r"--include one:2: No slot '2'"),
        ("one:x", r"--include one:x: "),
    ],
)
def test_what_is_not_there_is_named(hostfile, include, said):
    with pytest.raises(ConfigError, match=said):
        slots_of(hostfile, include)


@pytest.mark.parametrize("text", ["one\n", "", "one slots=1\none slots=1\n"])
def test_a_broken_hostfile_is_named(hostfile, text):
    hostfile.write_text(text)
    with pytest.raises(ConfigError, match=r"--hostfile .*hosts: "):
        slots_of(hostfile, "")


def test_a_hostfile_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        slots_of(tmp_path / "none", "")


def test_without_a_hostfile_gpus_of_this_machine_are_meant(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert slots_of(None, "localhost:1,3") == {"localhost": [1, 3]}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="this machine has no GPU; give --ranks"):
        slots_of(None, "localhost")


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_a_run_of_one_machine_has_no_more_ranks_than_gpus(monkeypatch, gpus, ranks):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ranks_here(2) == ranks


@pytest.mark.parametrize(
    ("ranks", "tensor", "documents", "said"),
    [
        (3, 2, 1, r"3 ranks, which training.tensor_parallel \(2\) does not .* multiple of 2"),
        (1, 1, 2, r"1 rank, which training.document_parallel \(2\) does not .* multiple of 2"),
        (6, 2, 2, r"tensor_parallel \(2\) times training.document_parallel \(2\) .* of 4"),
    ],
)
def test_ranks_that_cannot_be_divided_are_refused(ranks, tensor, documents, said):
    with pytest.raises(ConfigError, match=said):
        replicas_of(ranks, tensor, documents)
    assert replicas_of(tensor * documents * 2, tensor, documents) == 2
