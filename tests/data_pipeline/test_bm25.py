import bm25s
import numpy as np
import pytest
import Stemmer

import data_pipeline.bm25
from data_pipeline.bm25 import BM25, WordCounts, best_first

TEXTS = [
    "a red fox runs",
    "blue whales swimming",
    "the green tree",
    "",
    "red foxes and a red whale",
]


@pytest.fixture
def bm25():
    return BM25.of(TEXTS)


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
    assert BM25.of(["the", "of", ""]).rank(np.array([2, 1]), ["x", "y"], 1).tolist() == [[1], [1]]


def test_ties_go_to_the_lower_place():
    assert best_first(np.array([1.0, 3, 2, 3, 2, 2]), 4).tolist() == [1, 3, 2, 4]


def test_scores_of_any_part_are_those_of_an_index_of_it_alone():
    """Beside bm25s's own index, over texts that came in several parts."""
    draw = np.random.default_rng(0)
    words = np.array(["fox", "whale", "tree", "boat", "boats", "swims", "running", "the", "gull"])
    texts = [" ".join(draw.choice(words, draw.integers(0, 12))) for _ in range(60)]
    joined = BM25(*(WordCounts.of(texts[a:b]) for a, b in ((0, 7), (7, 7), (7, 33), (33, 60))))
    assert len(joined) == 60
    questions = [
        "a fox runs, a fox swims",
        "boat",
        "the",
        "swimming tides of gulls",
        "xyzzy keeper",
    ]
    stemmer = Stemmer.Stemmer("english")
    for size in (60, 17, 3):
        part = np.sort(draw.choice(60, size, replace=False))
        own = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        given = bm25s.tokenize(
            [texts[i] for i in part], stopwords="en", stemmer=stemmer, show_progress=False
        )
        own.index(given, show_progress=False)
        for question, found in zip(questions, joined.scores(part, questions), strict=True):
            asked = bm25s.tokenize(
                question, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
            )
            known = [word for word in asked[0] if word in given.vocab]
            expected = own.get_scores(known) if known else np.zeros(size)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_words_are_counted_over_batches_of_texts(monkeypatch):
    whole = BM25.of(TEXTS)
    monkeypatch.setattr(data_pipeline.bm25, "_TEXTS", 2)
    for some, all_ in zip(
        BM25.of(iter(TEXTS)).scores(np.arange(5), ["red whale", "tree"]),
        whole.scores(np.arange(5), ["red whale", "tree"]),
        strict=True,
    ):
        assert some.tolist() == all_.tolist() and some.any()
    assert len(BM25()) == 0
    assert next(iter(BM25().scores(np.arange(0), ["red"]))).shape == (0,)
