"""msmarco: triples of texts, and of ids."""

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, named, passages, questions, write


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
        ("7\t0\t1\n5\t0\t1\n", "line 2: '5' is among the queries that are not in --queries"),
        ("7\t0\t9\n", "line 1: there is no passage '9' in the corpus"),
    ):
        path = write(tmp_path / "a.tsv", text)
        fails(tmp_path, "msmarco", [path], f"{path}, {said}", strict=True, **files)
    only = {"queries": files["queries"]}
    fails(tmp_path, "msmarco", [path], "triples of ids need both --collection", **only)
    write(files["queries"], "7\twho\n7\thow\n")
    fails(tmp_path, "msmarco", [path], "queries.tsv, line 2: the query id '7'", **files)
    write(files["collection"], "0\tcats\n0\tdogs\n")
    fails(tmp_path, "msmarco", [path], "collection.tsv, line 2: the passage id '0'", **files)
    path.write_bytes(b"a\tb\t\xff\n")
    fails(tmp_path, "msmarco", [path], f"{path}, line 1: not UTF-8")


def test_triples_of_what_is_not_there_are_counted(tmp_path, files):
    triples = write(tmp_path / "a.tsv", "7\t0\t9\n5\t0\t1\n8\t9\t1\n")
    converted = convert("msmarco", [triples], tmp_path / "out", **files)
    assert questions(tmp_path / "out") == [Question("7", "who", (), ("0",))]
    assert [count for what, count in converted.left_out.items() if "judgements" in what] == [2, 2]


def test_a_byte_order_mark_is_no_part_of_the_first_value(tmp_path):
    triples = write(tmp_path / "a.tsv", "\ufeffwho\tcats\tdogs\n")
    convert("msmarco", [triples], tmp_path / "out")
    assert [question.question for question in questions(tmp_path / "out")] == ["who"]


def test_judgements_without_triples(tmp_path, files):
    qrels = write(tmp_path / "qrels.tsv", "7\t0\t0\t1\n7\t0\t1\t0\n8\t0\t1\t2\n")
    convert("msmarco", [qrels], tmp_path / "out", **files)
    assert questions(tmp_path / "out") == [
        Question("7", "who", (), ("0",), (), ("1",)),
        Question("8", "how", (), ("1",)),
    ]
