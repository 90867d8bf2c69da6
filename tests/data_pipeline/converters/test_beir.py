"""beir: a corpus, queries and their judgements."""

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question, read_passages
from tests.data_pipeline.converters.files import fails, passages, questions, write, write_jsonl


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
        "d3": ("", "Only a title"),  # what reads passages needs a text
    }
    wanted = [Question("q1", "who", (), ("d1", "d3"), (), ("d2",), any_of=True)]
    assert questions(tmp_path / "out", "test") == wanted


def test_broken_beir(tmp_path, folder):
    qrels = folder / "qrels" / "train.tsv"
    header = "query-id\tcorpus-id\tscore\n"
    for text, said in (
        ("", "holds no judgement: give lines of query, passage, score"),
        (f"{header}q1\td1\n", "line 2: has 2 columns, not 3"),
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


def test_judgements_of_what_is_not_there_are_counted_or_refused(tmp_path, folder):
    header = "query-id\tcorpus-id\tscore\n"
    path = write(folder / "qrels" / "train.tsv", f"{header}q1\td9\t1\nq1\td1\t1\nq9\td1\t1\n")
    converted = convert("beir", [folder], tmp_path / "out")
    assert questions(tmp_path / "out") == [Question("q1", "who", (), ("d1",))]
    passage, query = (
        f"(the first: {path}, line {at}: '{id}')" for at, id in ((2, "d9"), (4, "q9"))
    )
    assert converted.left_out == {
        "queries without a judgement in train": 1,
        f"judgements of passages that are not in the corpus {passage}": 1,
        f"judgements of queries that are not in queries.jsonl {query}": 1,
    }
    said = f"{path}, line 2: there is no passage 'd9'"
    fails(tmp_path, "beir", [folder], said, strict=True)
    write(path, f"{header}q9\td1\t1\n")
    fails(tmp_path, "beir", [folder], "line 2: 'q9' is among the queries that are not", strict=True)
    fails(tmp_path, "beir", [folder], "no question can be written: 1 judgements name queries")


def test_metadata_that_says_something_is_kept(tmp_path, folder):
    pmid = {"_id": "d5", "title": "Pigs", "text": "Pigs grunt.", "metadata": {"pmid": 7}}
    write_jsonl(folder / "corpus.jsonl", {"_id": "d1", "text": "x", "metadata": {}}, pmid)
    convert("beir", [folder], tmp_path / "out", ["train"])
    found = [passage.metadata for passage in read_passages(tmp_path / "out" / "corpus.jsonl")]
    assert found == [None, {"pmid": 7}]


def test_judgements_may_be_trecs_or_without_a_header(tmp_path, folder):
    (folder / "qrels" / "train.tsv").unlink()
    write(folder / "qrels" / "train.txt", "q1 0 d1 1\nq1 0 d2 0\n")
    write(folder / "qrels" / "test.tsv", "q1\td1\t1\nq1\td2\t0\n")
    convert("beir", [folder], tmp_path / "out", ["train", "test"])
    wanted = [Question("q1", "who", (), ("d1",), (), ("d2",))]
    assert questions(tmp_path / "out") == questions(tmp_path / "out", "test") == wanted
