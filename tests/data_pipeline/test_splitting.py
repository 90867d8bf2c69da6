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
