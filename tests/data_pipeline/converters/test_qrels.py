"""Relevance judgements in the forms that are about."""

import pytest

from data_pipeline.converters.qrels import read_qrels
from data_pipeline.errors import DataError
from tests.data_pipeline.converters.files import write


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("query-id\tcorpus-id\tscore\nq 1\td 1\t1\nq2\td2\t0.0\n", 2),
        ("q 1\td 1\t2\nq2\td2\t-1\n", 1),
        ("\ufeffq 1\t0\td 1\t1\r\nq2\tQ0\td2\t0\r\n", 1),
        ("qid iter docno rel\n\nq 1\t0\td 1\t1\nq2  0 d2   0\n", 3),
    ],
    ids=["beir", "headerless", "trec", "mixed"],
)
def test_forms(tmp_path, text, first):
    path = write(tmp_path / "a.tsv", text)
    found = [(each.where, each.query, each.passage, each.relevant) for each in read_qrels(path)]
    assert found == [
        (f"{path}, line {first}", "q 1", "d 1", True),
        (f"{path}, line {first + 1}", "q2", "d2", False),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q1\td1\n", "line 1: has 2 columns, not 3 or 4: give query, passage, score"),
        ("q1\td1\t1\nq1\t0\td1\t1\n", "line 2: has 4 columns, not 3: give as many"),
        ("a\tb\tc\nd\te\tf\n", "line 2: the score is 'f': give a number"),
        ("", "holds no judgement"),
    ],
)
def test_broken_judgements_are_named(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        list(read_qrels(write(tmp_path / "a.tsv", text)))
