import numpy as np
import pytest

from data_pipeline.schema import Query
from msa_train.evaluation.metrics import (
    Bootstrap,
    answer_columns,
    element_recall,
    elements,
    exact_match,
    f1,
    id_columns,
    recall_columns,
    set_match,
    words,
)


def test_words_split_at_punctuation_and_drop_articles():
    assert words("The  Answer, is:\n os.path.join()!") == ["answer", "is", "os", "path", "join"]
    assert words("__init__") == ["__init__"]
    assert words("A") == ["a"], "an answer of nothing but articles keeps them"


@pytest.mark.parametrize(
    ("said", "wanted", "exact", "score"),
    [
        ("the Cat.", "cat", 1, 1),
        ("os.path.split", "os.path.join", 0, 2 / 3),
        ("cat cat", "cat", 0, 2 / 3),  # doubled words cost precision
        ("dog", "cat", 0, 0),
        ("", "cat", 0, 0),
    ],
)
def test_exact_match_and_f1(said, wanted, exact, score):
    assert exact_match(said, wanted) == exact
    assert f1(said, wanted) == pytest.approx(score)


def test_enumerations_are_sets():
    assert elements("Lamp, the sea and owl,") == {("lamp",), ("sea",), ("owl",)}
    assert set_match("owl, lamp", ("lamp", "owl")) == 1
    assert set_match("owl, lamp, sea", ("lamp", "owl")) == 0
    assert set_match("lamp", ("lamp", "owl")) == 0


def test_element_recall_wants_whole_words():
    assert element_recall("owl, lamps, ice cream", ("owl", "lamp", "ice cream", "sea")) == 0.5


def test_recall_counts_positives_among_the_first_k():
    ranked = np.array([[9, 3, 4, 5, 6, 7], [1, 2, 0, 8, 8, 8]])
    queries = [Query("a", ("x",), (3,)), Query("b", ("x",), (1, 7))]
    columns = recall_columns(ranked, queries, "layer2/")
    assert columns["layer2/recall@1"].tolist() == [0, 0.5]
    assert columns["layer2/recall@5"].tolist() == [1, 0.5]
    assert columns["layer2/all_found@5"].tolist() == [1, 0]


def test_ids_written():
    queries = [Query("a", ("x",), (3, 4))] * 3
    columns = id_columns([[3, 9], [], [4, 3]], queries)
    assert columns["ids_precision"].tolist() == [0.5, 0, 1]
    assert columns["ids_recall"].tolist() == [0.5, 0, 1]
    assert columns["ids_f1"].tolist() == [0.5, 0, 1]


def test_alternatives_and_lists_of_answers():
    plain = [Query("a", ("os.path.join", "posixpath.join"), (0,))]
    assert answer_columns("answer_text", ["posixpath.join"], plain)["answer_text"].tolist() == [1]
    listed = [Query("a", ("b, a",), (0, 1), values=("b", "c"))]
    columns = answer_columns("answer_memory", ["c and b"], listed)
    assert columns["answer_memory"].tolist() == [1]
    assert columns["answer_memory_recall"].tolist() == [1]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws = Bootstrap(200, resamples=500, seed=1)
    covered = 0
    for _ in range(300):
        low, high = draws.interval((rng.random(200) < 0.8).astype(float))
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_intervals_are_those_of_the_seed():
    values = np.arange(50) / 50
    assert Bootstrap(50, seed=3).interval(values) == Bootstrap(50, seed=3).interval(values)
    assert Bootstrap(50, seed=3).interval(values) != Bootstrap(50, seed=4).interval(values)


def test_relative_loss_is_paired():
    """The same questions fail at both lengths but for 20 of 1,000: far surer than two samples."""
    before = np.ones(1000)
    before[:200] = 0
    after = before.copy()
    after[200:220] = 0
    value, low, high = Bootstrap(1000).relative_loss(before, after)
    assert value == pytest.approx(20 / 800)
    assert 0.01 < low < value < high < 0.04
    assert Bootstrap(1000).relative_loss(np.zeros(1000), after) is None
