import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.schema import Query
from msa_train.evaluation.banks import groups, ring_order, window

LENGTHS = (640, 2560, 6400)
NUMBERS = [1000 + i for i in range(130)]
RING = np.arange(130)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(40, 65, 130)


def singles(n=130):
    return [Query(f"q{i}", ("a",), (1000 + i,)) for i in range(n)]


def scattered():
    """One question per four documents; the four lie anywhere."""
    order = np.random.default_rng(1).permutation(128).reshape(-1, 4)
    return [Query(f"q{i}", ("a",), tuple(sorted(1000 + row))) for i, row in enumerate(order)]


def test_a_window_holds_its_tokens_and_no_document_more(tokens):
    for first in (0, 7, 120):
        bank = window(tokens, first, 640)
        assert bank[0] == first
        assert tokens[bank].sum() >= 640 > tokens[bank[:-1]].sum()


def test_windows_wrap_around_and_nest(tokens):
    small, large = window(tokens, 125, 640), window(tokens, 125, 2560)
    assert {125, 129, 0, 1} <= set(small) <= set(large)
    assert sorted(window(tokens, 5, 10**9)) == list(range(130))


def test_documents_of_a_question_are_neighbours_on_the_ring():
    ring = ring_order(scattered(), NUMBERS)
    assert sorted(ring) == list(range(130))
    for query in scattered():
        at = sorted(list(ring).index(number - 1000) for number in query.positives)
        assert at == list(range(at[0], at[0] + 4))


@pytest.mark.parametrize(("queries", "questions"), [(singles(), 30), (scattered(), 20)])
def test_every_length_answers_the_same_questions(tokens, queries, questions):
    found = groups(queries, ring_order(queries, NUMBERS), NUMBERS, tokens, LENGTHS, questions)
    asked = [query.question for group in found for query in group.queries]
    assert len(set(asked)) == len(asked) == questions, "nothing is asked twice"
    for group in found:
        small, middle, large = (set(group.banks[length]) for length in LENGTHS)
        assert small < middle < large
        assert {number - 1000 for q in group.queries for number in q.positives} <= small


@pytest.mark.parametrize("questions", range(1, 60, 3))
def test_no_group_is_without_questions(tokens, questions):
    rich_in_places = [query for query in singles() if query.positives[0] % 17 < 8]
    found = groups(rich_in_places, RING, NUMBERS, tokens, LENGTHS, questions)
    assert all(group.queries for group in found)
    assert sum(len(group.queries) for group in found) == questions


def test_places_of_a_bank_are_ascending(tokens):
    for group in groups(
        scattered(), ring_order(scattered(), NUMBERS), NUMBERS, tokens, LENGTHS, 20
    ):
        assert all((np.diff(bank) > 0).all() for bank in group.banks.values())


def test_groups_are_spread_over_the_set(tokens):
    found = groups(singles(), RING, NUMBERS, tokens, LENGTHS, 30)
    assert np.diff([group.banks[640][0] for group in found]).min() > 130 / 4


def test_too_many_questions_are_refused(tokens):
    with pytest.raises(DataError, match=r"evaluation\.questions is 500"):
        groups(singles(), RING, NUMBERS, tokens, LENGTHS, 500)
