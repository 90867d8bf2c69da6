from dataclasses import replace

from data_pipeline.corpus import corpus_texts, template_phrases, train_tokenizer
from data_pipeline.protocol import END_OF_RETRIEVE
from data_pipeline.sources.needles import Needles
from data_pipeline.tokenizer import Tokenizer


def test_texts_cover_needles_protocol_and_documentation(config):
    texts = list(corpus_texts(config))
    assert texts == list(corpus_texts(config)), "the same every time"
    everything = "\n".join(texts)
    for word in Needles(config.niah).words.all:
        assert everything.count(word) >= config.tokenizer.word_repeats
    assert everything.count("One of the special magic words for") >= config.tokenizer.needle_texts
    assert END_OF_RETRIEVE in everything and "json.dumps(obj" in everything


def test_the_tokenizer_is_saved_and_deterministic(config, tokenizer, tmp_path):
    assert train_tokenizer(config, tmp_path).fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert tokenizer.vocab_size == config.tokenizer.vocab_size


def test_phrases_become_one_token_each(config):
    tokenizer = train_tokenizer(replace(config, tokenizer=replace(config.tokenizer, phrases=True)))
    for phrase in template_phrases(config):
        assert len(tokenizer.encode_text(phrase)) == 1, phrase


def test_document_numbers_are_spelled_in_tokens_that_know_their_place(config):
    settings = replace(config.tokenizer, placed_digits=True)
    tokenizer = train_tokenizer(replace(config, tokenizer=settings))
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
