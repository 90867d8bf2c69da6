"""msmarco, beir and sentence_transformers: queries and judged passages, no answers."""

import gzip
import json

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import (
    fails,
    named,
    passages,
    questions,
    write,
    write_jsonl,
)


def test_msmarco_triples_of_texts(tmp_path):
    first = write(tmp_path / "a.tsv", "who\tcats\tdogs\nhow\tdogs\tcats\nwho\tcats\tpigs\n")
    second = write(tmp_path / "b.tsv", "who\tpigs\t dogs \n")
    converted = convert("msmarco", [first, second], tmp_path / "out")
    assert (converted.passages, converted.questions) == (3, {"train": 2})
    assert converted.repeated_passages == 5
    who, how = questions(tmp_path / "out")
    assert (who.question, who.answers, how.question) == ("who", (), "how")
    assert named(tmp_path / "out", who.positives) == ["cats", "pigs"]
    assert named(tmp_path / "out", who.negatives) == ["dogs"]
    convert("msmarco", [first, second], tmp_path / "again")
    assert questions(tmp_path / "again") == [who, how]


@pytest.fixture
def files(tmp_path):
    return {
        "collection": write(tmp_path / "collection.tsv", "0\tcats\n1\tdogs\n2\tpigs\n3\t \n"),
        "queries": write(tmp_path / "queries.tsv", "7\twho\n8\thow\n9\tunasked\n"),
    }


def test_msmarco_triples_of_ids(tmp_path, files):
    triples = write(tmp_path / "a.tsv", "8\t1\t0\n7\t0\t1\n7\t0\t2\n7\t3\t3\n")
    converted = convert("msmarco", [triples], tmp_path / "out", ["dev"], **files)
    assert (converted.passages, converted.questions) == (3, {"dev": 2})
    assert converted.left_out == {"empty passages": 1, "queries without a triple": 1}
    assert passages(tmp_path / "out") == {"0": ("", "cats"), "1": ("", "dogs"), "2": ("", "pigs")}
    assert questions(tmp_path / "out", "dev") == [
        Question("8", "how", (), ("1",), (), ("0",)),
        Question("7", "who", (), ("0",), (), ("1", "2")),
    ]


def test_broken_msmarco(tmp_path, files):
    for text, said in (
        ("7\t0\t1\n7\t0\n", "line 2: has 2 columns, not 3: give qid, pid, pid with tabs"),
        ("7\t0\t1\n5\t0\t1\n", "line 2: the queries have no '5'"),
        ("7\t0\t9\n", "line 1: there is no passage '9' in the corpus"),
    ):
        path = write(tmp_path / "a.tsv", text)
        fails(tmp_path, "msmarco", [path], f"{path}, {said}", **files)
    only = {"queries": files["queries"]}
    fails(tmp_path, "msmarco", [path], "triples of ids need both --collection", **only)
    write(files["queries"], "7\twho\n7\thow\n")
    fails(tmp_path, "msmarco", [path], "queries.tsv, line 2: the query id '7'", **files)
    write(files["collection"], "0\tcats\n0\tdogs\n")
    fails(tmp_path, "msmarco", [path], "collection.tsv, line 2: the passage id '0'", **files)
    path.write_bytes(b"a\tb\t\xff\n")
    fails(tmp_path, "msmarco", [path], f"{path}, line 1: not UTF-8")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "beir"
    write_jsonl(
        folder / "corpus.jsonl",
        {"_id": "d1", "title": "Cats", "text": "Cats purr.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "Dogs bark."},
        {"_id": "d3", "title": "Only a title", "text": ""},
        {"_id": "d4", "title": "", "text": "Dogs  bark."},
    )
    write_jsonl(folder / "queries.jsonl", {"_id": "q1", "text": "who"}, {"_id": "q2", "text": "?"})
    qrels = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td4\t0\nq1\td3\t1\n"
    write(folder / "qrels" / "test.tsv", qrels)
    write(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t-1\n")
    return folder


def test_beir(tmp_path, folder):
    converted = convert("beir", [folder], tmp_path / "out", ["test", "train"])
    assert (converted.passages, converted.repeated_passages) == (3, 1)
    assert converted.questions == {"test": 1}
    assert converted.left_out == {
        "queries without a judgement in test": 1,
        "queries without a judgement in train": 1,
        "questions without a passage that answers them": 1,
    }
    assert passages(tmp_path / "out") == {
        "d1": ("Cats", "Cats purr."),
        "d2": ("", "Dogs bark."),
        "d3": ("Only a title", ""),
    }
    wanted = [Question("q1", "who", (), ("d1", "d3"), (), ("d2",), any_of=True)]
    assert questions(tmp_path / "out", "test") == wanted


def test_broken_beir(tmp_path, folder):
    qrels = folder / "qrels" / "train.tsv"
    header = "query-id\tcorpus-id\tscore\n"
    for text, said in (
        ("q1\td1\t1\n", "line 1: give the header query-id, corpus-id, score"),
        ("", "give the header"),
        (f"{header}q1\td1\n", "line 2: has 2 columns, not 3"),
        (f"{header}q1\td1\t1\nq9\td1\t1\n", "line 3: queries.jsonl has no 'q9'"),
        (f"{header}q1\td9\t1\n", "line 2: there is no passage 'd9'"),
        (f"{header}q1\td1\tgood\n", "line 2: the score is 'good': give a number"),
    ):
        write(qrels, text)
        fails(tmp_path, "beir", [folder], str(qrels), said)
    fails(tmp_path, "beir", [folder], "dev.tsv cannot be read", splits=["dev"])
    fails(tmp_path, "beir", [qrels], "give one folder with corpus.jsonl")
    queries = write_jsonl(folder / "queries.jsonl", {"_id": "q1", "text": 3})
    fails(tmp_path, "beir", [folder], f'{queries}, line 1: "text" is 3: give a string')
    corpus = write_jsonl(folder / "corpus.jsonl", {"_id": "d1", "title": "x"})
    fails(tmp_path, "beir", [folder], f'{corpus}, line 1: "text" is missing: give a string')


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
