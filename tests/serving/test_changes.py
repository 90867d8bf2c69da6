"""Documents put into a bank and taken out: all of them, or none."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import pytest

from data_pipeline.splitting import DOCUMENT_TOKENS
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.search.live import LiveBank
from msa_train.serving.banks import ServedBank
from msa_train.serving.changes import put_documents, remove_documents
from msa_train.serving.errors import ApiError, ClientGone
from msa_train.serving.schemas import Removal
from tests.serving.running import MODEL, tiny_bank


@pytest.fixture
def bank(tmp_path):
    path = tiny_bank(tmp_path / "notes")
    bank = ServedBank("notes", path, LiveBank(path, MODEL.model, MODEL.fingerprint), False)
    yield bank
    bank.close()


def gone():
    raise ClientGone


def put(bank, *documents, update=False, going_on=lambda: None, wait_s=1.0):
    stored = [StoredDocument(0, text, id) for id, text in documents]
    return put_documents(bank, MODEL, stored, update, wait_s, going_on)


def test_new_numbers_follow_the_last(bank):
    assert put(bank, ("a", "One."), ("", "Two.")) == [123457, 123458]
    assert bank.snapshot[123457].text == "One."
    assert put(bank, ("a", "Changed."), update=True) == [123459]
    assert bank.snapshot.numbers_of("a") == [123459]


def test_a_long_document_becomes_several_of_one_id(bank):
    numbers = put(bank, ("long", "Cranes sleep. " * DOCUMENT_TOKENS))
    assert len(numbers) > 1 and bank.snapshot.numbers_of("long") == numbers


@pytest.mark.parametrize(
    ("documents", "update", "code"),
    [
        ([("a", "x"), ("a", "y")], False, "id_twice"),
        ([("", "x")], True, "no_id"),
        ([("fresh", "x"), ("d2", "y")], False, "id_exists"),
        ([("d2", "x"), ("fresh", "y")], True, "document_not_found"),
    ],
)
def test_what_cannot_be_put_changes_nothing(bank, documents, update, code):
    before = bank.info()
    with pytest.raises(ApiError) as caught:
        put(bank, *documents, update=update)
    assert caught.value.code == code and bank.info() == before


def test_a_change_that_nobody_waits_for_is_not_made(bank):
    before = bank.info()
    with pytest.raises(ClientGone):
        put(bank, ("a", "x"), going_on=gone)
    assert bank.info() == before


LONG = ("long", "Cranes sleep. " * DOCUMENT_TOKENS * 4)


def test_a_long_text_is_split_before_others_have_to_wait(bank, monkeypatch):
    locked, length = [], Splitting._length

    def observed(self, text):
        locked.append(bank._writing.locked())
        return length(self, text)

    monkeypatch.setattr(Splitting, "_length", observed)
    put(bank, LONG)
    assert locked and not any(locked)


def test_splitting_ends_where_nobody_waits(bank, monkeypatch):
    asked = []
    encode_text = type(MODEL.tokenizer).encode_text

    def counted(self, text):
        asked.append(len(text))
        return encode_text(self, text)

    monkeypatch.setattr(type(MODEL.tokenizer), "encode_text", counted)
    before = bank.info()
    with pytest.raises(ClientGone):
        put(bank, LONG, going_on=lambda: gone() if len(asked) == 5 else None)
    assert len(asked) == 5 and max(asked) < 20_000 and bank.info() == before


def test_waiting_for_ones_turn_ends_where_nobody_waits(bank):
    left = Event()
    with bank.writing(1.0), ThreadPoolExecutor(1) as pool:
        patient = partial(put, going_on=lambda: gone() if left.is_set() else None, wait_s=60)
        waiting = pool.submit(patient, bank, ("a", "x"))
        left.set()
        with pytest.raises(ClientGone):
            waiting.result(10)


def test_all_are_removed_or_none(bank):
    for ids, numbers in ((["d2", "nobody"], []), ([], [2, 5])):
        with pytest.raises(ApiError, match="no document"):
            remove_documents(bank, Removal(ids=ids, numbers=numbers), 1.0, lambda: None)
        assert bank.view().knows(2)
    assert remove_documents(bank, Removal(ids=["d3"], numbers=[2, 2]), 1.0, lambda: None) == [2, 3]
    assert not bank.view().knows(2)


def test_a_removal_that_nobody_waits_for_is_not_made(bank):
    with pytest.raises(ClientGone):
        remove_documents(bank, Removal(numbers=[2]), 1.0, gone)
    assert bank.view().knows(2)
