from dataclasses import replace

import pytest

from data_pipeline.protocol import END_OF_RETRIEVE
from data_pipeline.sources.niah import Needles
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer_training import (
    corpus_texts,
    corpus_tokenizer,
    template_phrases,
)


def test_texts_cover_needles_protocol_and_documentation(config):
    sources = ("niah", "pydocs")
    texts = list(corpus_texts(config, sources))
    assert texts == list(corpus_texts(config, sources)), "the same every time"
    everything = "\n".join(texts)
    for word in Needles(config.niah).words.all:
        assert everything.count(word) >= config.tokenizer.word_repeats
    assert everything.count("One of the special magic words for") >= config.tokenizer.needle_texts
    assert END_OF_RETRIEVE in everything and "json.dumps(obj" in everything


@pytest.fixture
def train(corpus):
    """Trains a tokenizer of the corpus with other settings."""

    def trained(**settings):
        tokenizer = replace(corpus.data.tokenizer, **settings)
        return corpus_tokenizer(replace(corpus, data=replace(corpus.data, tokenizer=tokenizer)))

    return trained


def test_only_sources_in_use_are_read(corpus):
    assert corpus.used_sources == ("niah", "pydocs")
    texts = "".join(corpus_texts(corpus.data, ("pydocs",)))
    assert "json.dumps(obj" in texts and "json.dumps" not in "".join(
        corpus_texts(corpus.data, ("niah",))
    )


def test_the_tokenizer_is_deterministic_and_may_be_given(config, train, tokenizer, tmp_path):
    assert train().fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert train(path=str(tmp_path), vocab_size=999).fingerprint == tokenizer.fingerprint
    assert tokenizer.vocab_size == config.tokenizer.vocab_size


def test_phrases_become_one_token_each(config, train):
    tokenizer = train(phrases=True)
    for phrase in template_phrases(config):
        assert len(tokenizer.encode_text(phrase)) == 1, phrase


def test_document_numbers_are_spelled_in_tokens_that_know_their_place(train):
    tokenizer = train(placed_digits=True)
    for number, tokens in {
        7: ["[", "7]"],
        89: ["[89", "]"],
        123: ["[12", "3]"],
        4567: ["[45", "67]"],
        12345: ["[12", "34", "5]"],
        123456: ["[12", "34", "56]"],
    }.items():
        ids = tokenizer.encode_text(f"[{number}]")
        assert [tokenizer.decode([i]) for i in ids] == tokens
