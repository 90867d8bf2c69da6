import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.niah_words import Prose, sentences, word_lists


def test_words_are_plain_and_in_one_list_each():
    lists = word_lists(128, 256, 256)
    assert len(set(lists.all)) == 640
    assert all(word.isascii() and word.islower() and word.isalpha() for word in lists.all)
    assert word_lists(64, 100, 16).nouns == lists.nouns[:100], "a shorter list is a prefix"
    with pytest.raises(DataError, match=r"data\.niah\.adjectives is 100000"):
        word_lists(100_000, 1, 4)


def test_prose_fills_its_budget_and_holds_no_needle(tokenizer, rng):
    assert not any("magic" in sentence for sentence in sentences())
    prose = Prose(tokenizer)
    assert prose.draw(rng, 0) == []
    for budget in (1, 7, 40, 300):
        text = "".join(f" {word}" for sentence in prose.draw(rng, budget) for word in sentence)
        assert budget - 12 <= len(tokenizer.encode_text(text)) <= budget
