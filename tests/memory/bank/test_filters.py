"""Filters: the documents that a plain loop over all of them would let through."""

import gc
import tracemalloc
from dataclasses import replace

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.documents import DocumentTable
from msa_train.memory.bank.filters import DocumentFilter
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from tests.memory.building import build, document

METADATA = [
    {"year": 1999, "lang": "de", "author": {"name": "Ada", "born": 1815}},
    {"year": 1999.0, "lang": "en"},
    {"year": 19990, "lang": "de\u2028"},
    {"year": True, "note": '"year": 1999', "inner": {"year": 1999}},
    None,
    {"year": None, "author.name": "Ada"},
    {"tags": ["a", 1], "author": {"name": None}},
    "year",
    {"year": 0.5, "naïve": "東京", "big": 10**17, "zero": -0.0},
    {"year": -3, "quote": 'a"b\\'},
    {"year": 1e-9, "author": {"name": {"first": "Ada"}}},
    {"year": 1999, "lang": "fr"},
]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("filters") / "bank"
    given = [
        replace(document(number), metadata=metadata, added=1000 + number)
        for number, metadata in enumerate(METADATA)
    ]
    build(path, given)  # four segments
    with BankWriter(path, "remove") as writer:
        writer.remove([11])
    return BankSnapshot.open(path)


def numbers(bank, **given):
    allowed = DocumentFilter.from_json(given).allowed(bank)
    assert allowed.shape == bank.numbers.shape and allowed.dtype == torch.bool
    return bank.numbers[allowed].tolist()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"year": 1999}, [0, 1]),
        ({"year": 1999.0}, [0, 1]),
        ({"year": [1999, -3, 0.5, 1e-9]}, [0, 1, 8, 9, 10]),
        ({"year": True}, [3]),
        ({"year": 1}, []),
        ({"year": None}, [5]),
        ({"year": []}, []),
        ({"lang": "de"}, [0]),
        ({"lang": "de\u2028"}, [2]),
        ({"lang": ["de", "en", "fr", "\ud800"]}, [0, 1]),
        ({"year": 1999, "lang": "en"}, [1]),
        ({"author.name": "Ada"}, [0, 5]),
        ({"author.name": None}, [6]),
        ({"author.name.first": "Ada"}, [10]),
        ({"author": {"born": 1815, "name": "Ada"}}, [0]),
        ({"inner.year": 1999}, [3]),
        ({"tags": [["a", 1]]}, [6]),
        ({"tags": ["a", 1]}, [6]),
        ({"tags": "a"}, [6]),
        ({"tags": 1.0}, [6]),
        ({"tags": ["b", "a, 1"]}, []),
        ({"tags": ["a", *range(2, 100)]}, [6]),
        ({"naïve": "東京"}, [8]),
        ({"big": 10**17}, [8]),
        ({"big": 1e17}, [8]),
        ({"zero": 0}, [8]),
        ({"quote": 'a"b\\'}, [9]),
        ({"nowhere": 1}, []),
        ({"year": [1999, *range(100)]}, [0, 1]),
        ({"author.name": ["Ada", *range(100)]}, [0, 5]),
        ({}, list(range(11))),
    ],
    ids=str,
)
def test_metadata(bank, metadata, expected):
    for _ in range(2):  # the second answer is remembered
        assert numbers(bank, metadata=metadata) == expected


def test_what_is_remembered_is_not_as_large_as_what_was_asked(bank):
    tracemalloc.start()
    try:
        for part in range(8):
            assert numbers(bank, metadata={"lang": f"{part}" * 1_000_000}) == []
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


def test_all_parts_must_hold(bank):
    assert numbers(bank) == list(range(11))
    assert numbers(bank, numbers=[3, 11, 99, -1, 5]) == [3, 5]
    assert numbers(bank, ids=["d2", "d11", "nobody", "d9"]) == [2, 9]
    assert numbers(bank, ids=[]) == numbers(bank, numbers=[]) == []
    assert numbers(bank, added_after=1003, added_before=1008) == [4, 5, 6, 7]
    assert numbers(bank, added_after=1003, ids=["d2", "d5", "d7"], numbers=[5, 6]) == [5]
    assert numbers(bank, added_before=1001, metadata={"year": 1999}, ids=None) == [0]


def test_numbers_read_no_documents_and_ids_only_their_own(bank, monkeypatch):
    read, real = [], DocumentTable.__getitem__
    monkeypatch.setattr(DocumentTable, "column", None)
    monkeypatch.setattr(
        DocumentTable, "__getitem__", lambda self, row: read.append(row) or real(self, row)
    )
    assert numbers(bank, numbers=[3]) == [3] and not read
    assert numbers(bank, ids=["d4", "d5"]) == [4, 5] and len(read) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "filter is \\[\\]: give an object"),
        ({"id": ["a"]}, "unknown key 'id': give ids, numbers"),
        ({"ids": "a"}, "filter.ids is 'a': give a list of strings"),
        ({"ids": [1]}, "filter.ids has 1: give strings"),
        ({"numbers": [True]}, "filter.numbers has True"),
        ({"numbers": [1 << 63]}, "filter.numbers has 9223372036854775808"),
        ({"numbers": ["1"]}, "filter.numbers has '1'"),
        ({"metadata": ["x" * 99]}, "filter.metadata is .*…: give an object"),
        ({"added_after": 1.5}, "filter.added_after has 1.5: give milliseconds"),
        ({"added_before": "now"}, "filter.added_before has 'now'"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(BankError, match=said):
        DocumentFilter.from_json(given)


def test_changed_columns_are_refused(tmp_path):
    build(tmp_path / "bank", [replace(document(n), metadata={"n": "one"}) for n in range(3)])
    (file,) = (tmp_path / "bank").rglob("documents.arrow")
    file.write_bytes(file.read_bytes().replace(b'{"n": "one"}', b'{"n": "two"}'))
    for given in ({"metadata": {"n": "two"}}, {"added_after": 1}):
        with pytest.raises(BankError, match=r"documents.arrow was changed"):
            numbers(BankSnapshot.open(tmp_path / "bank"), **given)


def test_every_part_of_a_split_document_passes_with_its_metadata(tmp_path):
    """Its parts lie in two segments, and in one after compaction; a plain loop says the same."""
    parts = [replace(document(n), id="long", part=n, metadata={"k": "long"}) for n in range(1, 6)]
    path = tmp_path / "bank"
    build(path, [replace(document(0), metadata={"k": "short"}), *parts])
    for _ in range(2):
        bank = BankSnapshot.open(path)
        expected = [each.number for each in bank if each.metadata == {"k": "long"}]
        assert expected == [1, 2, 3, 4, 5] == numbers(bank, metadata={"k": "long"})
        assert numbers(bank, metadata={"k": ["short", "none"]}) == [0]
        with BankWriter(path, "compact") as writer:
            writer.compact()
