"""JSON lines: plain or gzipped, what is broken is named by file and line."""

import gzip

import pytest

from data_pipeline.errors import DataError
from data_pipeline.jsonl import objects_of, read_lines, read_objects, read_values


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_know_their_place_and_empty_ones_are_skipped(tmp_path, name):
    path = write(tmp_path / name, b'{"a": 1}\n\n  \n[2]\n"caf\xc3\xa9"')
    assert [where for where, _ in read_lines(path)] == [f"{path}, line {n}" for n in (1, 4, 5)]
    assert [value for _, value in read_values(path)] == [{"a": 1}, [2], "café"]
    objects = read_objects(path)
    assert next(objects) == (f"{path}, line 1", {"a": 1})
    with pytest.raises(DataError, match=r"line 4: give a JSON object, not list"):
        next(objects)


@pytest.mark.parametrize("line", [b"{,}", b'"\xff"', b"[" * 100_000], ids=["json", "utf8", "deep"])
def test_a_line_that_is_no_json_is_named(tmp_path, line):
    path = write(tmp_path / "a.jsonl", b"1\n" + line + b"\n")
    values = read_values(path)
    assert next(values) == (f"{path}, line 1", 1)
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not JSON: "):
        next(values)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": "x", "id": "x\\ud83d"}', r"'id' holds half a surrogate pair \('\\ud83d'\)"),
        (b'{"a": [{"b": ["\\uDC00"]}]}', "'a' holds half"),
        (b'{"\\ud800": 1}', r"'\\ud800' holds half"),
        (b'["\\ude00\\ud83d"]', "it holds half"),
        (b'"\xed\xa0\xbd"', "not JSON: 'utf-8' codec"),
    ],
)
def test_half_a_surrogate_pair_is_named_where_it_is_read(tmp_path, line, said):
    path = write(tmp_path / "a.jsonl", b'"\\ud83d\\ude00 and \\\\ud83d"\n' + line)
    values = read_values(path)
    assert next(values)[1] == "😀 and \\ud83d"
    with pytest.raises(DataError, match=f"a.jsonl, line 2: {said}"):
        next(values)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert [line for _, line in read_lines(path)] == [b"one\n", b"\xef\xbb\xbftwo\n"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = write(tmp_path / "a.jsonl.gz", b'{"a": 1}\n' * 1000).read_bytes()
    for data in (whole[:-20], b"no gzip"):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"a.jsonl.gz is no complete gzip file"):
            list(read_lines(tmp_path / "a.jsonl.gz"))
    with pytest.raises(DataError, match=r"b.jsonl cannot be read: No such file"):
        list(read_lines(tmp_path / "b.jsonl"))


def test_lines_may_come_from_elsewhere():
    found = list(objects_of([("standard input, line 1", b'{"a": null}')]))
    assert found == [("standard input, line 1", {"a": None})]
