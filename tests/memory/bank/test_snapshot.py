"""A snapshot: documents by number and id, of one committed state, by the right weights."""

import json
import shutil
from dataclasses import replace
from itertools import count

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank import segment as segment_file
from msa_train.memory.bank import snapshot, verify
from msa_train.memory.bank.documents import DocumentTable, StoredDocument
from msa_train.memory.bank.filters import DocumentFilter
from msa_train.memory.bank.manifest import BankManifest
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.search.loader import bank_view
from tests.faults.bank_changes import CHANGES, encoded, texts
from tests.memory.building import build, search, tiny_bank
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


def test_documents_are_found_by_number(tiny):
    for document in tiny_documents():
        assert same(tiny[document.number], document)
        assert tiny.numbers_of(document.id) == [document.number]
    assert tiny.numbers_of("d4") == []
    view = bank_view(tiny, tiny_model().config.router)
    assert [n for n in range(50) if view.knows(n)] == [2, 3, 17, 40, 41]
    for number in (0, 18, 10**9):
        with pytest.raises(KeyError):
            tiny[number]


def same(stored, document):
    fields = ("number", "id", "title", "text")
    return all(getattr(stored, field) == getattr(document, field) for field in fields)


def test_parts_are_found_as_a_whole(tmp_path):
    """Two split ones without an id follow each other."""
    ids, parts = ["a", "a", "", "", "", "", "", "", "b", ""], [1, 2, 0, 1, 2, 3, 1, 2, 0, 0]
    documents = [
        StoredDocument(number, f"Text {number}.", id, part=part)
        for number, (id, part) in enumerate(zip(ids, parts, strict=True))
    ]
    build(tmp_path / "bank", documents)
    bank = BankSnapshot.open(tmp_path / "bank")
    wholes = [[0, 1], [0, 1], [2], [3, 4, 5], [3, 4, 5], [3, 4, 5], [6, 7], [6, 7], [8], [9]]
    assert [bank.whole_of(number) for number in range(10)] == wholes
    with pytest.raises(KeyError):
        bank.whole_of(10)


def test_info_counts(tiny):
    info = tiny.info()
    assert info["documents"] == 7
    assert info["tokens"] == int(tiny.segments[0].documents.tokens.sum())
    assert info["chunks"] == int(tiny.chunk_cu[-1])
    assert info["fingerprint"] == FINGERPRINT
    assert json.loads(json.dumps(info)) == info


def test_other_weights_are_refused_by_name(tiny):
    with pytest.raises(BankError, match=r"its model fingerprint is aaaa.*model's is cccc"):
        BankSnapshot.open(tiny.path, FINGERPRINT | {"model": "c" * 64})
    with pytest.raises(BankError, match="config fingerprint"):
        BankSnapshot.open(tiny.path, FINGERPRINT | {"config": "d" * 64})


def test_an_empty_bank_is_a_bank(tmp_path):
    tiny_bank(tmp_path / "bank", [])
    view = bank_view(BankSnapshot.open(tmp_path / "bank", FINGERPRINT), tiny_model().config.router)
    assert (len(view), view.knows(0)) == (0, False)
    (answer,) = MemoryEngine(tiny_model(), tiny_tokenizer(), view).ask(
        ["?"], "router", InterleaveLimits(answer_tokens=2)
    )
    assert answer.evidence == () and answer.rounds[0].chosen.voted == []


def test_an_open_reader_keeps_its_state(bank):
    opened, before = BankSnapshot.open(bank, FINGERPRINT), texts(bank)
    scores = search(bank_view(opened, tiny_model().config.router))[0].values
    for name in ("add", "update", "compact"):
        CHANGES[name].run(bank)
    assert {each.number: each.text for each in opened} == before
    assert torch.equal(search(bank_view(opened, tiny_model().config.router))[0].values, scores)


STEPS = {
    "manifest": (BankManifest, "load"),
    "sizes": (segment_file, "_check_size"),
    "table": (DocumentTable, "__init__"),
    "map": (Segment, "_map"),
}


@pytest.fixture
def compacted_after(bank, monkeypatch):
    """compacted_after(step): a compaction falls behind the first such step of whoever reads."""

    def compact():
        with BankWriter(bank, "compact") as writer:
            writer.remove([0])
            writer.compact()

    def arrange(where, name):
        real, left = getattr(where, name), [compact]

        def step(*given):
            found = real(*given)
            if left:
                left.pop()()
            return found

        monkeypatch.setattr(where, name, step)

    return arrange


@pytest.mark.parametrize("step", STEPS)
def test_a_compaction_while_a_bank_is_opened_leads_to_the_newest_state(bank, compacted_after, step):
    before = texts(bank)
    compacted_after(*STEPS[step])
    assert {each.number: each.text for each in BankSnapshot.open(bank, FINGERPRINT)} == {
        number: text for number, text in before.items() if number
    }


@pytest.mark.parametrize("step", [*STEPS.values(), (verify, "changed_files")], ids=str)
def test_a_compaction_while_a_bank_is_verified_is_no_damage(bank, compacted_after, step):
    compacted_after(*step)
    report = verify.verify_bank(bank)
    assert not report["problems"] and report["documents"] == 11


def test_an_old_reader_filters_after_its_segments_are_gone(bank):
    opened = BankSnapshot.open(bank)
    CHANGES["compact"].run(bank)
    only = DocumentFilter.from_json({"metadata": {"n": [3, 4]}})
    assert opened.numbers[only.allowed(opened)].tolist() == [4]


def test_a_bank_that_is_always_gone_is_given_up(bank, monkeypatch):
    manifest = BankManifest.load(bank)
    generations = (replace(manifest, generation=n) for n in count())
    monkeypatch.setattr(BankManifest, "load", lambda path: next(generations))
    monkeypatch.setattr(snapshot, "_PATIENCE_S", 0)
    shutil.rmtree(bank / "segments")
    for read in (BankSnapshot.open, verify.verify_bank):
        with pytest.raises(BankError):
            read(bank)


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
