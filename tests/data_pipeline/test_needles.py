from collections import Counter

import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.niah import Needles, NiahConfig
from data_pipeline.sources.words import word_lists

ALL = {"single": 1.0, "multi_key": 1.0, "multi_value": 1.0, "multi_query": 1.0}


def needles(**settings):
    return Needles(NiahConfig(**settings))


def test_words_are_plain_and_in_one_list_each():
    lists = word_lists(128, 256, 256)
    assert len(set(lists.all)) == 640
    assert all(word.isascii() and word.islower() and word.isalpha() for word in lists.all)
    assert word_lists(64, 100, 16).nouns == lists.nouns[:100], "a shorter list is a prefix"
    with pytest.raises(DataError, match=r"data\.niah\.adjectives is 100000"):
        word_lists(100_000, 1, 4)


def test_phrases_are_rulers():
    n = needles()
    assert n.sentence("a b c", "v") == "One of the special magic words for a b c is: v."
    single = "What is the special magic word for a mentioned in the provided text?"
    assert n.question(("a",), several=False) == single
    several = "What are all the special magic words for {} mentioned in the provided text?"
    assert n.question(("a",), several=True) == several.format("a")
    assert n.question(("a", "b", "c"), several=True) == several.format("a, b, and c")
    numbers = needles(value_form="number")
    assert "magic numbers for" in numbers.sentence("a", "1")
    assert "magic number for a " in numbers.question(("a",), several=False)


def test_documents_are_shared_among_the_tasks(rng):
    groups = needles(tasks=ALL).draw(rng, 128)
    documents = Counter()
    for group in groups:
        documents[group.task] += len(group.values)
    assert documents == {"single": 32, "multi_key": 32, "multi_value": 32, "multi_query": 32}
    assert {len(group.keys) for group in groups if group.task == "multi_value"} == {1}


def test_what_the_shares_leave_over_is_single_and_unasked_without_a_share(rng):
    groups = needles(tasks={"multi_value": 1.0}).draw(rng, 10)
    assert Counter(group.task for group in groups) == {"multi_value": 2, "single": 2}
    assert [group.asked for group in groups] == [True, True, False, False]


def test_keys_are_unique_to_the_last_one(rng):
    small = needles(tasks=ALL, key_words=2, adjectives=20, nouns=20)
    keys = [key for group in small.draw(rng, 300) for key in group.keys]
    assert len(keys) == len(set(keys))
    every = needles(tasks={"single": 1.0}, adjectives=5, nouns=3)
    assert every.config.key_count == 60
    assert len({group.keys for group in every.draw(rng, 60)}) == 60


def test_keys_do_not_repeat_an_adjective(rng):
    for group in needles(tasks={"single": 1.0}, adjectives=4, nouns=4).draw(rng, 40):
        assert len(set(group.keys[0].split())) == 3


def test_a_key_space_too_small_is_refused_with_the_numbers(rng):
    with pytest.raises(DataError, match=r"61 needles.*5 adjectives and 3 nouns make 60"):
        needles(adjectives=5, nouns=3).draw(rng, 61)
    with pytest.raises(DataError, match=r"differ from.*holds 3 of 4 keys"):
        needles(tasks={"multi_key": 1.0}, key_words=2, adjectives=2, nouns=2).draw(rng, 4)


def test_multi_keys_differ_in_one_word(rng):
    for group in needles(tasks={"multi_key": 1.0}).draw(rng, 40):
        first = group.keys[0].split()
        for key in group.keys[1:]:
            assert sum(a != b for a, b in zip(first, key.split(), strict=True)) == 1


@pytest.mark.parametrize("form", ["word", "number"])
def test_values_of_a_key_differ(rng, form):
    config = {"tasks": {"multi_value": 1.0}, "value_form": form, "values": 4, "value_digits": 3}
    for group in needles(**config).draw(rng, 100):
        assert len(set(group.values)) == 4
        assert form == "word" or all(len(value) == 3 and value.isdigit() for value in group.values)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"tasks": {"haystack": 1.0}}, "'haystack'"),
        ({"tasks": {"single": -1.0}}, "tasks.single is -1.0"),
        ({"tasks": {}}, "positive share"),
        ({"needle_share": 0.0}, "needle_share is 0.0"),
        ({"key_words": 0}, "key_words is 0"),
        ({"values": 3}, "values is 3"),
        ({"key_words": 4, "adjectives": 2}, "4 words needs 3"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(DataError, match=words):
        NiahConfig(**settings)
