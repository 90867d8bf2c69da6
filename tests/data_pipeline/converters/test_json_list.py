"""One element at a time of a list in a JSON file, however the file is cut while it is read."""

import gzip
import json

import pytest

from data_pipeline.converters import json_list
from data_pipeline.converters.json_list import read_list
from data_pipeline.errors import DataError
from tests.data_pipeline.converters.files import write

VALUES = [
    {"a": ["x\n", 'ü"]', 1.5, -12, 1e-30, None]},
    [],
    "",
    "s",
    1234567,
    2.5e300,
    True,
    False,
    {"b": {}},
]


@pytest.fixture(params=[1, 2, 7, 1 << 20])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_list, "_CHUNK", request.param)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_elements_of_a_list(tmp_path, chunk, indent, ascii_only):
    text = json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only)
    found = list(read_list(write(tmp_path / "a.json", text + "\n")))
    assert found == [(f"[{i}]", value) for i, value in enumerate(VALUES)]


@pytest.mark.parametrize("indent", [None, 2])
def test_elements_of_a_list_under_a_key(tmp_path, chunk, indent):
    data = {"v": 1.1, "not": {"data": [1]}, "data": VALUES, "after": [[]], "last": 3}
    path = write(tmp_path / "a.json", json.dumps(data, indent=indent))
    assert list(read_list(path, "data")) == [(f"data[{i}]", v) for i, v in enumerate(VALUES)]


def test_an_empty_list_a_byte_order_mark_and_gzip(tmp_path):
    assert list(read_list(write(tmp_path / "a.json", "\ufeff [ ] "))) == []
    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        file.write("[1]")
    assert list(read_list(tmp_path / "a.json.gz")) == [("[0]", 1)]


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[1,\n2,\n{3}]", None, "line 3: not JSON: Expecting property name"),
        ("[1,\n2\n3]", None, "line 3: not JSON: '3' stands where one of ,] must"),
        ("[1,\n\n2", None, "line 3: not JSON: the end of the file stands where one of ,]"),
        ('["a\n', None, "line 1: not JSON: Invalid control character"),
        ('[\n"a', None, "line 2: not JSON: Unterminated string"),
        ("[1,\n]", None, "line 2: not JSON: Expecting value"),
        ("[1]\n[2]", None, "line 2: there is text after the end of the JSON"),
        ('{"data": [1]}', None, "line 1: give a JSON list of records"),
        ("", None, "line 1: give a JSON list of records"),
        ("[1]", "data", 'line 1: give a JSON object with a list "data"'),
        ("{}", "data", 'line 1: there is no list "data"'),
        ('{"a": [1],\n"data": 3}', "data", 'line 2: there is no list "data"'),
        ('{"data": [1],\n3}', "data", "line 2: not JSON: '}' stands where one of :"),
    ],
)
def test_what_is_broken_is_named_by_file_and_line(tmp_path, chunk, text, key, said):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(DataError) as raised:
        list(read_list(path, key))
    assert str(raised.value).startswith(f"{path}, line ")
    assert said in str(raised.value)


def test_a_broken_record_is_found_without_reading_on(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", "[{x" + " " * 10_000 + '"' + "y" * 10_000)
    monkeypatch.setattr(json_list, "_CHUNK", 64)
    read = []
    monkeypatch.setattr(json_list._Text, "_more", _counting(json_list._Text._more, read))
    with pytest.raises(DataError, match="line 1: not JSON: Expecting property name"):
        list(read_list(path))
    assert len(read) == 1


def _counting(function, calls):
    def counted(self):
        calls.append(1)
        return function(self)

    return counted


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.json cannot be read: No such file"):
        list(read_list(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(DataError, match=r"latin.json is not UTF-8"):
        list(read_list(tmp_path / "latin.json"))
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[1, 2]")[:-9])
    with pytest.raises(DataError, match=r"cut.json.gz is no complete gzip file"):
        list(read_list(tmp_path / "cut.json.gz"))


def test_what_no_text_can_hold_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.json", '[1,\n"\\ud83d\\ude00",\n{"a": "\\ud83d"}]')
    elements = read_list(path)
    assert [next(elements)[1] for _ in range(2)] == [1, "😀"]
    with pytest.raises(DataError, match=r"a.json, line 3: 'a' holds half a surrogate pair"):
        next(elements)
    with pytest.raises(DataError, match=r"b.json, line 2: nested too deep"):
        list(read_list(write(tmp_path / "b.json", "[1,\n" + "[" * 100_000)))
