"""sentence_transformers: pairs, triplets and sets."""

import gzip
import json

import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, named, questions, write_jsonl


def test_sentence_transformers(tmp_path):
    lines = [
        ["who", "cats"],
        ["who", "pigs", "dogs"],
        {"query": "how", "pos": ["dogs", "cats"], "neg": ["pigs"]},
        {"query": "where", "pos": "pigs"},
        {"set": ["same", "equal", "like"]},
        ["who", "dogs"],
    ]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    converted = convert("sentence_transformers", [tmp_path / "a.jsonl.gz"], tmp_path / "out")
    assert (converted.passages, converted.questions) == (5, {"train": 4})
    out = tmp_path / "out"
    assert [
        (q.question, named(out, q.positives), named(out, q.negatives), q.answers)
        for q in questions(out)
    ] == [
        ("who", ["cats", "pigs", "dogs"], [], ()),
        ("how", ["dogs", "cats"], ["pigs"], ()),
        ("where", ["pigs"], [], ()),
        ("same", ["equal", "like"], [], ()),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["who"], "give [anchor, positive], [anchor"),
        (["who", 3], "give [anchor, positive], [anchor"),
        ({"set": ["one"]}, "give [anchor, positive], [anchor"),
        ({"set": ["one", "two", 3]}, "\"set\" is ['one', 'two', 3]: give a list of strings"),
        ({"query": "who"}, '"pos" is missing: give a list'),
        ({"query": 3, "pos": []}, '"query" is 3: give a string'),
    ],
)
def test_broken_sentence_transformers(tmp_path, line, said):
    path = write_jsonl(tmp_path / "a.jsonl", ["who", "cats"], line)
    fails(tmp_path, "sentence_transformers", [path], f"{path}, line 2: {said}")
