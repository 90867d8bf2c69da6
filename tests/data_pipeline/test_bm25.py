import numpy as np
import pytest

from data_pipeline.bm25 import BM25, best_first

TEXTS = [
    "a red fox runs",
    "blue whales swimming",
    "the green tree",
    "",
    "red foxes and a red whale",
]


@pytest.fixture
def bm25():
    return BM25(TEXTS)


def test_the_obvious_document_comes_first_whatever_its_endings(bm25):
    ranked = bm25.rank(np.arange(5), ["Which whale swims?", "trees", "a fox that is running"], 2)
    assert ranked[:, 0].tolist() == [1, 2, 0]


def test_only_the_bank_is_searched(bm25):
    ranked = bm25.rank(np.array([4, 2, 1]), ["whale swimming", "red fox"], 16)
    assert ranked.tolist() == [[1, 4, 2], [4, 1, 2]]


def test_another_bank_after_the_first_is_really_another(bm25):
    assert bm25.rank(np.array([0, 1]), ["red"], 1).tolist() == [[0]]
    assert bm25.rank(np.array([2, 4]), ["red"], 1).tolist() == [[4]]


def test_questions_without_known_words_fall_back_to_the_lowest_places(bm25):
    assert bm25.rank(np.arange(5), ["", "of the", "xyzzy"], 2).tolist() == [[0, 1]] * 3


def test_texts_of_stop_words_alone_are_ranked_by_place():
    assert BM25(["the", "of", ""]).rank(np.array([2, 1]), ["x", "y"], 1).tolist() == [[1], [1]]


def test_ties_go_to_the_lower_place():
    assert best_first(np.array([1.0, 3, 2, 3, 2, 2]), 4).tolist() == [1, 3, 2, 4]
