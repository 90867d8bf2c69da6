"""Input files: their splits, and what is wrong with a record, a table or a text is named."""

import pytest

from data_pipeline.converters.inputs import (
    Record,
    files_by_split,
    files_with_splits,
    line_records,
    list_records,
    one_folder,
    read_csv,
    read_text,
    read_tsv,
)
from data_pipeline.errors import DataError
from tests.data_pipeline.converters.files import write, write_json, write_jsonl


def test_one_split_for_all_files_or_one_for_each():
    assert files_with_splits(["a", "b"], ()) == [("a", "train"), ("b", "train")]
    assert files_with_splits(["a", "b"], ("x",)) == [("a", "x"), ("b", "x")]
    assert files_with_splits(["a", "b"], ("x", "y")) == [("a", "x"), ("b", "y")]
    with pytest.raises(DataError, match=r"3 splits \(x, y, z\) for 2 files"):
        files_with_splits(["a", "b"], ("x", "y", "z"))


def test_files_of_one_split_stand_together():
    assert files_by_split(["a", "b"], ()) == {"train": ["a", "b"]}
    assert files_by_split(["a", "b", "c"], ("x", "y", "x")) == {"x": ["a", "c"], "y": ["b"]}


def test_one_folder(tmp_path):
    assert one_folder([tmp_path], "things") == tmp_path
    for given in ([], [tmp_path, tmp_path], [write(tmp_path / "file", "")]):
        with pytest.raises(DataError, match="give one folder with things"):
            one_folder(given, "things")


RECORD = Record({"s": "x", "n": 3, "yes": True, "none": None, "all": ["a"], "in": {"t": 1}}, "FILE")


def test_fields_of_a_record():
    assert (RECORD.text("s"), RECORD.text("none", "")) == ("x", "")
    assert (RECORD.id("s"), RECORD.id("n"), RECORD.id("gone", None)) == ("x", "3", None)
    assert (RECORD.number("n"), RECORD.flag("yes"), RECORD.flag("gone", False)) == (3, True, False)
    assert (RECORD.texts("all"), RECORD.list("gone", [])) == (["a"], [])
    inner = RECORD.record("in")
    assert (inner.data, inner.where) == ({"t": 1}, "FILE, in")
    (element,) = Record({"a": [{}]}, "FILE, line 2", "b").records("a")
    assert element.where == "FILE, line 2, b.a[0]"


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda r: r.text("gone"), 'FILE: "gone" is missing: give a string'),
        (lambda r: r.text("none"), 'FILE: "none" is None: give a string'),
        (lambda r: r.number("yes"), 'FILE: "yes" is True: give a whole number'),
        (lambda r: r.id("yes"), 'FILE: "yes" is True: give an id'),
        (lambda r: r.flag("n"), 'FILE: "n" is 3: give true or false'),
        (lambda r: r.texts("in"), "FILE: \"in\" is {'t': 1}: give a list"),
        (lambda r: r.record("in").text("t"), 'FILE, in: "t" is 1: give a string'),
        (lambda r: list(r.records("all")), "FILE, all[0]: give a JSON object, not str"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(read, said):
    with pytest.raises(DataError) as raised:
        read(RECORD)
    assert str(raised.value).startswith(said)


def test_records_of_lines_and_of_lists(tmp_path):
    lines = write_jsonl(tmp_path / "a.jsonl", {"a": 1}, {"a": 2})
    assert [(r.number("a"), r.where) for r in line_records(lines)] == [
        (1, f"{lines}, line 1"),
        (2, f"{lines}, line 2"),
    ]
    data = write_json(tmp_path / "a.json", {"data": [{"a": 1}, 2]})
    records = list_records(data, "data")
    assert next(records).where == f"{data}, data[0]"
    with pytest.raises(DataError, match=r"data\[1\]: give a JSON object, not int"):
        next(records)


def test_tables(tmp_path):
    tsv = write(tmp_path / "a.tsv", '7\t"who\n\n8\thow\r\n')
    assert list(read_tsv(tsv, "id text")) == [
        (f"{tsv}, line 1", ["7", '"who']),
        (f"{tsv}, line 3", ["8", "how"]),
    ]
    long = "x" * 200_000  # csv's own limit is shorter
    csv = write(tmp_path / "a.csv", f'\ufeffid,text,more\n7,"two\nlines",{long}\n8,one,\n')
    rows = list(read_csv(csv, "text id"))
    assert [row.data for row in rows] == [
        {"id": "7", "text": "two\nlines", "more": long},
        {"id": "8", "text": "one", "more": ""},
    ]
    assert [row.where for row in rows] == [f"{csv}, line 2", f"{csv}, line 4"]


def test_a_text_loses_its_byte_order_mark(tmp_path):
    assert read_text(write(tmp_path / "a.txt", "\ufeffcafé\n")) == "café\n"
    with pytest.raises(DataError, match=r"b\.txt cannot be read: No such file"):
        read_text(tmp_path / "b.txt")
