"""Changing a bank: what readers see, and what is refused."""

import re

import pytest

from msa_train.errors import BankError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter, UnknownDocumentError
from msa_train.memory.search.loader import bank_view
from tests.faults.bank_changes import CHANGES, encoded, texts
from tests.memory.building import FILES, build, flip
from tests.memory.tiny import FINGERPRINT, tiny_model


def test_numbers_never_come_back(bank):
    before = BankSnapshot.open(bank).manifest.next_number
    with BankWriter(bank, "remove") as writer:
        writer.remove([13])
        writer.compact()
    assert BankSnapshot.open(bank).manifest.next_number == before == 14
    CHANGES["add"].run(bank)
    assert min(set(texts(bank)) - set(range(14))) == 14


def test_a_removed_document_is_gone_for_readers_and_reported(bank):
    view = bank_view(BankSnapshot.open(bank), tiny_model().config.router)
    assert not view.knows(3) and view.knows(4)
    with pytest.raises(KeyError):
        view.documents[3]
    with BankWriter(bank, "remove") as writer:
        for number in (3, 99):
            with pytest.raises(BankError, match=f"no document {number}: nothing was removed"):
                writer.remove([0, number])
    assert 0 in texts(bank)


def test_documents_are_removed_by_number_and_by_id(bank):
    before = texts(bank)
    with BankWriter(bank, "remove") as writer:
        generation = writer.manifest.generation
        assert writer.remove() == [] and writer.manifest.generation == generation
        with pytest.raises(UnknownDocumentError, match="no document of id 'x': none was") as caught:
            writer.remove([0], ["d1", "x"])
        assert caught.value.which == "of id 'x'" and texts(bank) == before
        assert writer.remove([8, 0], ["d1", "d8"]) == [0, 1, 8]
        assert writer.manifest.generation == generation + 1
    assert texts(bank) == {n: text for n, text in before.items() if n not in (0, 1, 8)}


def test_other_weights_may_not_write(bank):
    with pytest.raises(BankError, match="built by another model"):
        BankWriter(bank, "add", FINGERPRINT | {"model": "c" * 64})
    with pytest.raises(BankError, match="no memory bank"):
        BankWriter(bank.parent, "add")
    assert not (bank.parent / "writer.lock").exists()


@pytest.mark.parametrize("name", FILES)
def test_compaction_never_gives_damage_a_fresh_checksum(bank, name):
    file = next((bank / "segments").rglob(name))
    flip(file)
    before = {each: each.read_bytes() for each in bank.rglob("*") if each.is_file()}
    with BankWriter(bank, "compact") as writer, pytest.raises(BankError) as refused:
        writer.compact()
    assert f"{file} was changed" in str(refused.value)
    if name in ("layer-2.k", "layer-3.v"):
        assert re.search(
            r"K or V differ from their checksums in layer \d, documents \d", str(refused.value)
        )
    assert {each: each.read_bytes() for each in bank.rglob("*") if each.is_file()} == before
    assert any(name in problem for problem in verify_bank(bank)["problems"])


def test_compaction_merges_and_frees(tmp_path):
    build(tmp_path / "bank", 3)
    with BankWriter(tmp_path / "bank", "add", segment_documents=4) as writer:
        for _ in range(3):
            writer.add(encoded(writer.manifest.next_number, 3))
        writer.remove([4])
        writer.compact()
        counts = [(e.first, e.last, e.documents) for e in writer.manifest.segments]
    assert counts == [(0, 2, 3), (3, 5, 2), (6, 8, 3), (9, 11, 3)]
    with BankWriter(tmp_path / "bank", "compact") as writer:
        writer.compact()
        assert len(writer.manifest.segments) == 1
        generation = writer.manifest.generation
        writer.compact()
        assert writer.manifest.generation == generation  # nothing to do
    assert not verify_bank(tmp_path / "bank")["problems"]
