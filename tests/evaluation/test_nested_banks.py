from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.schema import Query
from msa_train.evaluation.nested_banks import (
    QuestionGroup,
    groups,
    nested_tasks,
    ring_order,
    whole_groups,
    window,
)


def test_every_document_is_a_needle_and_the_set_is_long_enough(config, needles, memory):
    assert all("One of the special magic words for" in d.text for d in needles.documents)
    assert max(config.evaluation.memory_tokens) <= memory.tokens.sum()


def test_tasks_ask_about_the_smallest_bank(config, held_out_needles, memory):
    settings = replace(config.evaluation, questions=3)
    tasks = nested_tasks(held_out_needles.tasks, held_out_needles.bank, memory, settings)
    assert [task.name for task in tasks] == ["single", "multi_value"]
    for task in tasks:
        assert len(task.queries) == 3
        assert {len(query.positives) for query in task.queries} == (
            {1} if task.name == "single" else {4}
        )
        for group in task.groups:
            held = {memory.numbers[place] for place in group.banks[2048]}
            assert all(held.issuperset(query.positives) for query in group.queries)
            assert memory.tokens[group.banks[2048]].sum() >= 2048


def test_whole_groups_are_asked():
    groups = [QuestionGroup(tuple(range(n)), {}) for n in (5, 1, 5, 4)]
    assert [len(group.queries) for group in whole_groups(groups, 4)] == [4]
    assert [group.queries for group in whole_groups(groups, 8)] == [tuple(range(5)), (0, 1, 2)]
    assert sum(len(group.queries) for group in whole_groups(groups, 14)) == 14
    assert whole_groups(groups, 99) == groups
    uneven = [QuestionGroup(tuple(range(n)), {}) for n in (4, 1, 1, 9)]
    for count in range(1, 16):
        chosen = whole_groups(uneven, count)
        assert all(group.queries for group in chosen)
        assert sum(len(group.queries) for group in chosen) == count


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
