"""Segments compared with their checksums: what was changed is named, down to the documents."""

import threading

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.checks import (
    changed_files,
    check_before_copying,
    check_keys,
    segment_problems,
)
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from tests.memory.building import FILES, flip


def test_a_whole_segment_has_no_problems(tiny):
    (segment,) = tiny.segments
    assert changed_files(segment.folder.parent, segment.entry) == segment_problems(segment) == []
    check_before_copying(tiny.segments)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named_before_it_is_copied(bank, name):
    file = bank / "segments" / "000001-000000000000" / name
    flip(file)
    with pytest.raises(BankError, match=rf"{name} was changed .*nothing was rewritten; restore"):
        check_before_copying(BankSnapshot.open(bank).segments)


@pytest.mark.parametrize("layer", [2, 3])
def test_documents_whose_states_were_changed_are_named(bank, layer):
    segment = BankSnapshot.open(bank).segments[0]
    row_bytes = segment.form.bytes(layer)["v"]
    for number in (4, 6):
        flip(segment.folder / f"layer-{layer}.v", int(segment.chunk_cu[number]) * row_bytes)
    (problem,) = segment_problems(BankSnapshot.open(bank).segments[0])
    assert f"differ from their checksums in layer {layer}, documents 4, 6" in problem


def test_a_missing_file_is_named(bank):
    segment = BankSnapshot.open(bank).segments[0]
    (segment.folder / "layer-2.crc").unlink()
    (problem,) = changed_files(segment.folder.parent, segment.entry)
    assert problem.endswith("layer-2.crc is missing")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["layer-2.key", "layer-3.key"])
def test_changed_keys_are_named_however_many_files_are_read_at_once(
    bank, monkeypatch, threads, name
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    [segment, *_] = BankSnapshot.open(bank).segments
    files = [(segment, layer) for layer in segment.form.layers]
    check_keys(files)
    flip(segment.folder / name)
    with pytest.raises(BankError, match=rf"{name} was changed"):
        check_keys(files)
    with pytest.raises(BankError, match=rf"{name} was changed"):
        check_before_copying([segment])
    check_keys([])


def test_files_are_read_side_by_side(bank, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2)  # broken where one is read after the other
    monkeypatch.setattr(Segment, "check_keys", lambda segment, layer: both.wait(30))
    [segment, *_] = BankSnapshot.open(bank).segments
    check_keys([(segment, layer) for layer in segment.form.layers])
