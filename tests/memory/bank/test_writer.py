"""Changing a bank: what readers see, and what is refused."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.build import add_documents
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.verify import verify_bank
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.search.in_memory import encode_in_memory
from msa_train.memory.search.tiers import bank_view
from tests.faults.bank_changes import CHANGES, encoded, prepared, texts
from tests.memory.building import build, document
from tests.memory.tiny import FINGERPRINT, tiny_model, tiny_tokenizer


@pytest.fixture
def bank(tmp_path):
    return prepared(tmp_path / "bank")


def named(id, number, text=None):
    return replace(document(number, text), id=id)


def put(path, documents, update=False):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    return add_documents(path, model, tokenizer, documents, FINGERPRINT, update)


def search(view, layer=3):
    gen = torch.Generator().manual_seed(5)
    config = tiny_model().config
    query = torch.randn(12, config.kv_heads * config.head_dim, generator=gen)
    return view.memory.search(layer, query, torch.tensor([0, 4, 4, 12]))


@pytest.mark.parametrize("changes", [(), ("add",), ("update", "add"), ("remove", "compact")])
def test_search_over_segments_equals_search_over_the_same_documents(bank, changes):
    for name in changes:
        CHANGES[name].run(bank)
    opened = BankSnapshot.open(bank, FINGERPRINT)
    view = bank_view(opened, tiny_model().config.router)
    same = encode_in_memory(tiny_model(), tiny_tokenizer(), list(opened), token_budget=60)
    ours, k, v = search(view)
    theirs, other_k, other_v = search(same)
    live = torch.cat([opened.numbers, torch.tensor([-1])])[ours.documents]
    assert torch.equal(live, torch.cat([same.numbers, torch.tensor([-1])])[theirs.documents])
    torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(ours.chunk_scores, theirs.chunk_scores)
    torch.testing.assert_close(k[ours.chunk_index], other_k[theirs.chunk_index])
    torch.testing.assert_close(v[ours.chunk_index], other_v[theirs.chunk_index])
    assert len(view) == view.memory.size == len(same)


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


def test_an_open_reader_keeps_its_state(bank):
    opened, before = BankSnapshot.open(bank, FINGERPRINT), texts(bank)
    scores = search(bank_view(opened, tiny_model().config.router))[0].values
    for name in ("add", "update", "compact"):
        CHANGES[name].run(bank)
    assert {each.number: each.text for each in opened} == before
    assert torch.equal(search(bank_view(opened, tiny_model().config.router))[0].values, scores)


def test_everything_of_a_document_is_kept(bank):
    (added,) = [d for d in BankSnapshot.open(bank) if d.number == 12]
    assert added == document(12)
    assert added.metadata == {"n": 12} and added.added == 7


def test_ids_are_given_once(bank):
    put(bank, [named("fresh", 0, "new one")])
    assert BankSnapshot.open(bank).numbers_of("fresh") == [14]
    with pytest.raises(BankError, match=r"'fresh' is in .*: update it instead"):
        put(bank, [named("fresh", 0)])
    with pytest.raises(BankError, match=r"'other' is not in .*: add it instead"):
        put(bank, [named("other", 0)], update=True)
    with pytest.raises(BankError, match="'twice' comes twice"):
        put(bank, [named("twice", 0)] * 2)
    put(bank, [named("fresh", 0, "newer")], update=True)
    assert BankSnapshot.open(bank).numbers_of("fresh") == [15]
    assert texts(bank)[15] == "newer" and 14 not in texts(bank)


def test_documents_without_id_are_named_by_their_number(bank):
    assert put(bank, [named("", 0), named("", 0)]) == 2
    assert [BankSnapshot.open(bank)[number].id for number in (14, 15)] == ["14", "15"]


def test_a_second_writer_is_refused_and_told_of_the_first(bank):
    with (
        BankWriter(bank, "compact"),
        pytest.raises(BankError, match=f"being written by process {os.getpid()} on .*compact"),
    ):
        BankWriter(bank, "add")
    BankWriter(bank, "add").close()


def test_a_dead_writer_is_recognised(bank, capfd):
    code = (
        "import os; from msa_train.memory.bank.writer import BankWriter; "
        f"writer = BankWriter({str(bank)!r}, 'compact'); os._exit(1)"
    )
    dead = subprocess.Popen([sys.executable, "-c", code])
    assert dead.wait(120) == 1
    (bank / "segments" / "stray").mkdir()
    BankWriter(bank, "add").close()
    assert f"process {dead.pid} on" in capfd.readouterr().err
    assert not verify_bank(bank)["orphans"]


def test_other_weights_may_not_write(bank):
    with pytest.raises(BankError, match="built by another model"):
        BankWriter(bank, "add", FINGERPRINT | {"model": "c" * 64})
    with pytest.raises(BankError, match="no memory bank"):
        BankWriter(bank.parent, "add")
    assert not (bank.parent / "writer.lock").exists()


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


def test_verify_counts_what_nobody_needs(bank):
    (bank / "segments" / "stray").mkdir()
    (bank / "segments" / "stray" / "file").write_bytes(b"12345")
    report = verify_bank(bank)
    assert report["orphan_bytes"] == 5 and not report["problems"]


def test_what_did_not_change_is_not_opened_again(bank, monkeypatch):
    opened = []
    real = Segment.__init__
    monkeypatch.setattr(
        Segment,
        "__init__",
        lambda self, *given: (opened.append(given[1].name), real(self, *given))[1],
    )
    with BankWriter(bank, "add") as writer:
        assert len(opened) == 2
        opened.clear()
        writer.add(encoded(14, 3))
        assert opened == [writer.manifest.segments[-1].name]
        writer.remove([0])
        assert len(opened) == 1
        snapshot = writer.bank
    with BankWriter(bank, "add", reuse=snapshot) as writer:
        assert len(opened) == 1 and len(writer.bank) == len(snapshot)


def test_half_surrogate_pairs_are_refused_by_document(bank):
    with pytest.raises(BankError, match=r"document 14 \('bad'\) has half a surrogate pair"):
        put(bank, [replace(document(0), id="bad", metadata={"k": "\ud800"})])
    assert not verify_bank(bank)["orphans"]


def test_files_that_a_segment_does_not_list_are_of_no_use(bank):
    stray = bank / "segments" / "000001-000000000000" / "stray"
    stray.write_bytes(b"123")
    assert verify_bank(bank)["orphans"] == [str(stray)]
    BankWriter(bank, "add").close()
    assert not stray.exists()
