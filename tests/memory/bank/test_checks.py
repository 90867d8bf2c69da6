"""Segments compared with their checksums: what was changed is named, down to the documents."""

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.checks import changed_files, check_before_copying, segment_problems
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
