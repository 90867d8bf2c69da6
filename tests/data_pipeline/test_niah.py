from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.protocol import document_pieces
from data_pipeline.sources.base import NumberConfig
from data_pipeline.sources.niah import NiahConfig
from data_pipeline.sources.niah import NiahSource
from data_pipeline.sources.prose import Prose, sentences
from data_pipeline.tokenizer_training import corpus_tokenizer

ALL = {"single": 1.0, "multi_key": 1.0, "multi_value": 1.0, "multi_query": 1.0}


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


def test_prose_fills_its_budget_and_holds_no_needle(tokenizer, rng):
    assert not any("magic" in sentence for sentence in sentences())
    prose = Prose(tokenizer)
    assert prose.draw(rng, 0) == []
    for budget in (1, 7, 40, 300):
        text = "".join(f" {word}" for sentence in prose.draw(rng, budget) for word in sentence)
        assert budget - 12 <= len(tokenizer.encode_text(text)) <= budget


def test_lengths_hold_when_phrases_are_tokens(corpus, rng):
    settings = replace(corpus.data.tokenizer, phrases=True)
    tokenizer = corpus_tokenizer(replace(corpus, data=replace(corpus.data, tokenizer=settings)))
    found = lengths(tokenizer, source(tokenizer).bank(rng, 256))
    assert max(found) <= 64
    assert np.mean(found) > 60
