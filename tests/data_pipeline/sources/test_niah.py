from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.protocol import document_pieces
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.niah import Needles, NiahConfig, NiahSource
from data_pipeline.tokenizer_training import corpus_tokenizer

ALL = {"single": 1.0, "multi_key": 1.0, "multi_value": 1.0, "multi_query": 1.0}


def needles(**settings):
    return Needles(NiahConfig(**settings))


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


def lengths(tokenizer, bank):
    return [
        len(tokenizer.encode_pieces(document_pieces(d.number, d.text)).tokens)
        for d in bank.documents
    ]


def source(tokenizer, **settings):
    return NiahSource(NiahConfig(**settings), tokenizer)


def test_documents_are_never_longer_than_their_length_and_nearly_fill_it(niah, tokenizer, rng):
    found = lengths(tokenizer, niah.bank(rng, 256))
    assert max(found) <= 64
    assert np.mean(found) > 60


@pytest.mark.parametrize("form", ["word", "number"])
def test_long_documents_keep_their_length(tokenizer, rng, form):
    bank = source(tokenizer, document_tokens=400, value_form=form).bank(rng, 30)
    found = lengths(tokenizer, bank)
    assert max(found) <= 400
    assert min(found) > 385


def test_the_curriculum_grows_from_bare_needles(niah, tokenizer, rng):
    bare = niah.bank(rng, 64, document_tokens=0)
    assert all(d.text.startswith("One of the special magic words for ") for d in bare.documents)
    assert all(d.text.count(".") == 1 for d in bare.documents)
    shortest, longest = min(lengths(tokenizer, bare)), max(lengths(tokenizer, bare))
    middle = lengths(tokenizer, niah.bank(rng, 64, document_tokens=48))
    assert max(middle) <= 48
    assert np.mean(middle) > (shortest + longest) / 2


def test_every_question_is_answered_by_its_positives_alone(tokenizer, rng):
    bank = source(tokenizer, tasks=ALL, document_tokens=128).bank(rng, 64)
    by_number = {d.number: d.text for d in bank.documents}
    assert len(bank.queries) == 16 + 16 + 4 + 4
    assert len({query.question for query in bank.queries}) == len(bank.queries)
    for query in bank.queries:
        keys = query.question.split(" for ")[1].split(" mentioned")[0]
        keys = keys.replace(", and ", ", ").split(", ")
        holders = {
            n for n, text in by_number.items() if any(f" {key} is: " in text for key in keys)
        }
        assert holders == set(query.positives)
        for value in query.values or query.answers:
            assert any(f" is: {value}." in by_number[n] for n in query.positives)


def test_values_of_an_answer_are_in_canonical_order(tokenizer, rng):
    bank = source(tokenizer, tasks={"multi_value": 1.0}).bank(rng, 40)
    by_number = {d.number: d.text for d in bank.documents}
    for query in bank.queries:
        assert query.answers == (", ".join(query.values),)
        assert len(query.positives) == len(query.values) == 4
        for number, value in zip(query.positives, query.values, strict=True):
            assert f" is: {value}." in by_number[number]
    ordered = source(tokenizer, tasks={"multi_value": 1.0}, value_order="alphabet")
    assert all(list(q.values) == sorted(q.values) for q in ordered.bank(rng, 40).queries)


def test_multi_query_answers_in_the_order_of_the_question(tokenizer, rng):
    bank = source(tokenizer, tasks={"multi_query": 1.0}, document_tokens=128).bank(rng, 16)
    text = " ".join(d.text for d in bank.documents)
    for query in bank.queries:
        keys = query.question.split(" for ")[1].split(" mentioned")[0].replace(" and ", " ")
        for key, value in zip(keys.split(", "), query.values, strict=True):
            assert f" {key.strip()} is: {value}." in text


def test_at_most_so_many_questions_are_asked(niah, rng):
    assert len(niah.bank(rng, 64, questions=5).queries) == 5
    assert niah.bank(rng, 64, questions=0).queries == ()
    assert len(niah.bank(rng, 64, questions=1000).queries) == 32 + 8


def test_in_a_haystack_few_documents_hold_a_needle(tokenizer, rng):
    hay = source(tokenizer, needle_share=0.25, tasks={"single": 1.0})
    bank = hay.bank(rng, 64)
    assert sum("magic" in document.text for document in bank.documents) == 16
    assert len(bank.queries) == 16
    assert max(lengths(tokenizer, bank)) <= 64
    assert all(document.text for document in hay.bank(rng, 64, document_tokens=0).documents)


def test_a_bank_depends_on_its_generator_alone(niah):
    first = niah.bank(np.random.default_rng((3, 1)), 32)
    niah.bank(np.random.default_rng(99), 32)
    assert niah.bank(np.random.default_rng((3, 1)), 32) == first
    assert niah.bank(np.random.default_rng((3, 2)), 32) != first


def test_a_large_bank_has_unique_keys_and_numbers(niah, rng):
    bank = niah.bank(rng, 16_384, questions=256, document_tokens=0)
    assert len({document.number for document in bank.documents}) == 16_384
    singles = [d.text.split(" for ")[1].split(" is:")[0] for d in bank.documents]
    assert len(set(singles)) == 8192 + 8192 // 4


def test_a_needle_that_does_not_fit_is_refused(tokenizer, rng):
    with pytest.raises(DataError, match=r"tokens with its wrapper.*\(20\)"):
        source(tokenizer, document_tokens=20).bank(rng, 4)


def test_a_target_beyond_the_limit_is_refused(niah, rng):
    with pytest.raises(DataError, match="document_tokens 65"):
        niah.bank(rng, 4, document_tokens=65)


def test_more_documents_than_numbers_are_refused(niah, tokenizer, rng):
    few = NiahSource(niah.config, tokenizer, NumberConfig(limit=8))
    with pytest.raises(DataError, match=r"numbers\.limit"):
        few.bank(rng, 9)


def test_lengths_hold_when_phrases_are_tokens(corpus, rng):
    settings = replace(corpus.data.tokenizer, phrases=True)
    tokenizer = corpus_tokenizer(replace(corpus, data=replace(corpus.data, tokenizer=settings)))
    found = lengths(tokenizer, source(tokenizer).bank(rng, 256))
    assert max(found) <= 64
    assert np.mean(found) > 60
