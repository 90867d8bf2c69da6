import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.protocol import document_pieces
from data_pipeline.splitting import document_length, sentences, split_text
from data_pipeline.tokenizer.sentencepiece import train_sentencepiece


def words(text):
    return len(text.split())


def test_whole_sentences_stay_together():
    text = "One two three. Four five! Six seven eight nine? Ten."
    assert split_text(text, 5, words) == ["One two three. Four five!", "Six seven eight nine? Ten."]
    assert split_text(text, 50, words) == [text]


def test_a_sentence_that_is_too_long_is_cut_after_a_word():
    assert split_text("a b c d e f g", 3, words) == ["a b c", "d e f", "g"]


def test_a_script_without_spaces_is_cut_at_its_marks_and_then_anywhere():
    assert split_text("战国无双。三代目武将！", 6, len) == ["战国无双。", "三代目武将！"]
    assert split_text("一二三四五六七", 3, len) == ["一二三", "四五六", "七"]


@given(st.text(max_size=200), st.integers(1, 30))
def test_parts_fit_and_lose_nothing_but_space(text, limit):
    assert "".join(sentences(text)) == text
    parts = split_text(text, limit, len)
    assert all(len(part) <= limit for part in parts) or parts == [text]
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_a_document_is_as_long_as_its_tokens_with_the_wrapper():
    tokenizer = train_sentencepiece([f"the word {i} and another" for i in range(200)], 290)
    for number, text in ((7, "the word"), (123_456, "another [7]. the")):
        pieces = document_pieces(number, text)
        whole = len(tokenizer.encode_pieces(pieces).tokens)
        assert document_length(tokenizer, text, number) == whole
    assert document_length(tokenizer, "") == document_length(tokenizer, "", 123_456)


@pytest.mark.parametrize(
    "parts",
    [
        ["他说：“下雨了。”", "她笑了！？", "好。"],
        ["雨が降った。", "「はい。」", "と言った。"],
        ["ฝนตกทั้งวัน", " เราอยู่บ้าน"],
        ["वह घर गया।", " बारिश हुई।"],
        ["مطر؟", " نعم۔", " لا"],
        ["Rain fell.", " It said 3.5 mm."],
    ],
    ids=["chinese", "japanese", "thai", "hindi", "arabic", "english"],
)
def test_sentences_of_any_script(parts):
    assert sentences("".join(parts)) == parts


def one_by_one(text, limit, length):
    """The rule, without regard to time: piece after piece, each tried."""
    if length(text) <= limit:
        return [text]
    pieces = []
    for sentence in sentences(text):
        if length(sentence) <= limit:
            pieces.append(sentence)
            continue
        for word in re.split(r"(?<=\s)(?=\S)", sentence):
            pieces += [word] if length(word) <= limit else list(word)
    parts, current = [], ""
    for piece in pieces:
        if current and length(current + piece) > limit:
            parts.append(current)
            current = ""
        current += piece
    return [stripped for part in [*parts, current] if (stripped := part.strip())]


@given(st.text("ab .\n。é中", max_size=400), st.integers(1, 60), st.sampled_from([0, 3]))
def test_parts_are_those_of_the_rule_one_by_one(text, limit, wrapper):
    def length(part):
        return wrapper + len(part.encode())

    assert split_text(text, limit, length) == one_by_one(text, limit, length)


@pytest.mark.parametrize("text", ["The crane sleeps. It rains\n", "unbroken" * 3, "word and "])
def test_parts_of_tokens_are_those_of_the_rule(text):
    tokenizer = train_sentencepiece([f"the word {i} and it rains" for i in range(200)], 290)

    def length(part):
        return document_length(tokenizer, part)

    text *= 1500 // len(text)
    assert split_text(text, 100, length) == one_by_one(text, 100, length)


@pytest.mark.parametrize("text", ["The cranes of the harbour sleep. ", "x", "word ", "雨", "\n"])
@pytest.mark.parametrize("limit", [200, 2048])
def test_the_time_to_split_grows_with_the_text_alone(text, limit):
    """Characters that were looked at: 50,000 without spaces took a hundred seconds."""
    asked = 0

    def length(part):
        nonlocal asked
        asked += len(part)
        return len(part) // 2

    for size in (100_000, 400_000):
        asked, whole = 0, text * (size // len(text))
        parts = split_text(whole, limit, length)
        assert len(parts) >= 20 * size // 100_000 or text == "\n"
        assert asked < 25 * size
