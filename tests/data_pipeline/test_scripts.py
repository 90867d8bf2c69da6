"""Words of any script."""

import pytest

from data_pipeline.scripts import count_words, join_words, spaced_words, spaceless, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It rained - again, they said.", ["It", "rained", "-", "again,", "they", "said."]),
        ("战国无双3，由ω-force开发。", [*"战国无双", "3", "，", "由", "ω-force", *"开发", "。"]),
        ("彼は「はい」と", [*"彼は「はい」と"]),
    ],
)
def test_words_are_those_between_spaces_and_the_characters_of_scripts_without(text, words):
    assert split_words(text) == words


def test_marks_of_a_script_without_spaces_are_no_words():
    assert count_words("彼は「はい」と") == 5
    assert count_words("他很高兴，。") == 4
    assert count_words("one - two") == 3
    assert count_words(" \n") == 0


@pytest.mark.parametrize("text", ["one two, three", "战国无双，由开发。", "雨 rain", ""])
def test_words_are_joined_as_they_were_written(text):
    assert join_words(split_words(text)) == text


def test_words_between_spaces_are_told_from_characters():
    text = "战国无双 and ω-force，3。"
    assert spaced_words(text) == ["and", "ω-force", "3"]
    assert (spaceless(text), spaceless("ab。")) == (4, 0)
