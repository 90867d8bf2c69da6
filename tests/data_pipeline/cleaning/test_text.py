import numpy as np
import pytest

from data_pipeline.cleaning.text import digest, ngrams, normalise, repeated_words, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Well-known, Straße!", "well - known  STRASSE"),
        ("ﬁne\u00a0print", "fine\nprint"),  # ligature, no-break space
        ("co\u00adoperate", "cooperate"),  # soft hyphen
        ("“Quoted”", '"quoted"'),
        ("Black_Death", "black death"),
        ("ＡＢＣ１２", "abc12"),
    ],
)
def test_equal_texts(one, other):
    assert normalise(one) == normalise(other)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("C++", "C"), ("3.5", "35"), ("$12", "12"), ("!!!", "???"), ("résumé", "resume")],
)
def test_different_texts(one, other):
    assert digest(one) != digest(other)
    assert len(digest(one)) == 16


def test_a_character_is_a_word_where_there_are_no_spaces():
    assert words("中国 NASA发射。") == ["中", "国", "nasa", "发", "射"]
    assert words("สวัสดี") == list("สวัสดี")
    assert words("안녕 세계") == ["안녕", "세계"]
    assert words("¿…?") == []


def test_ngrams():
    grams = ngrams(words("a b c a b c"), 3)
    assert grams.dtype == np.uint64 and len(grams) == 4
    assert grams[0] == grams[3] and len(set(grams.tolist())) == 3
    assert ngrams(["a", "b"], 2) != ngrams(["b", "a"], 2)
    assert len(ngrams(["a", "b"], 3)) == 0
    # written down: a change of the hash would show, and so would one between processes
    assert ngrams(["a"], 1).tolist() == [EXPECTED]


EXPECTED = 3405396810240292928


def test_repeated_words():
    assert repeated_words(list("abcdefgh"), 3) == 0
    assert repeated_words(list("abcxabc"), 3) == 3
    assert repeated_words(list("aaaaaa"), 3) == 5  # 4 trigrams, 3 of them repeats: words 1 to 5
    assert repeated_words(list("abcxabcyabc"), 3) == 6
