import pytest

from data_pipeline.cleaning.quality import QualityRules, passage_fault, question_fault
from data_pipeline.cleaning.text import words
from data_pipeline.dataset import Passage, Question
from data_pipeline.errors import DataError
from tests.data_pipeline.cleaning.conftest import ask, count, sentence

TEN = " ".join(f"word{'abcdefghij'[i]}" for i in range(10))


def fault(text, title="", **rules):
    return passage_fault(Passage("a", title, text), words(text), QualityRules(**rules))


@pytest.mark.parametrize(
    ("rule", "passes", "fails", "bounds"),
    [
        ("too_short", "one two three four five", "one two three four", {}),
        ("too_short", "我们都是人", "我们是人", {}),
        ("too_long", TEN, f"{TEN} more", {"max_words": 10}),
        ("too_long", "战国无双三是由光荣和", "战国无双三是由光荣和开", {"max_words": 10}),
        ("few_letters", "ab cd 12 34 ef 78 gh", "ab cd 12 34 ef 78 9h", {"min_letters": 8 / 14}),
        ("word_length", "ab cd ab cd ab", "ab cd ab cd a", {}),
        ("word_length", " ".join(["twelveletter"] * 5), " ".join(["thirteenletts"] * 5), {}),
        ("symbols", f"{TEN} #", f"{TEN} # #", {"max_symbols": 0.1, "min_letters": 0.3}),
        ("symbols", f"{TEN}...", f"{TEN}... more…", {}),
        ("repeated_lines", "a b c\nd e f\ng h i\na b c", "a b c\nd e f\na b c", {
            "max_repeated_lines": 0.25, "min_word_length": 1}),
        ("repeated_words", f"{TEN} and {TEN[:-6]} x", f"{TEN} and {TEN}", {}),
        ("repeated_words", f"{TEN} {sentence(1, 20)} {TEN}", f"{TEN} {sentence(1, 19)} {TEN}", {
            "max_repeated_words": 0.25, "max_word_length": 20}),
        ("broken_text", "a text with an emoji 😀 in it", "a text with half an emoji \ud83d", {}),
    ],
)  # fmt: skip
def test_a_passage_just_passes_and_just_fails(rule, passes, fails, bounds):
    assert fault(passes, **bounds) is None
    assert fault(fails, **bounds) == rule


def test_a_broken_title_is_broken_text():
    assert fault(TEN, title="\udc00") == "broken_text"


@pytest.mark.parametrize(
    ("rule", "passes", "fails"),
    [
        ("empty_question", ("who", ()), ("¿?!", ())),
        ("long_question", (TEN, ()), (f"{TEN} more", ())),
        ("long_question", ("战国无双三是由光荣和?", ()), ("战国无双三是由光荣和开", ())),
        ("long_answer", ("who", ("x", "one two three")), ("who", ("x", "one two three four"))),
        ("broken_text", ("who", ("x",)), ("who", ("\ud800",))),
    ],
)
def test_a_question_just_passes_and_just_fails(rule, passes, fails):
    rules = QualityRules(max_question_words=10, max_answer_words=3)
    assert question_fault(Question("q", *passes, ("p",)), rules) is None
    assert question_fault(Question("q", *fails, ("p",)), rules) == rule


def test_a_chinese_page_passes():
    text = "广茂铁路是中国广东省一条起自广州市广州西站，向西跨越北江、西江的铁路，全长364.6公里。"
    assert fault(text) is None
    assert fault("日本国铁211系电力动车组是日本国有铁道（JR）设计及制造的电力动车组。") is None


@pytest.mark.parametrize(
    ("answers", "stays"),
    [
        (["Rhine"], True),
        (["the RHINE!"], True),
        (["Danube", "rhine"], True),
        (["in its title"], True),
        (["Danube"], False),
        (["Elbe"], False),  # stands in a passage that is no positive
        (["yes"], True),
        ([], True),
    ],
)
def test_the_answer_can_be_asked_for(folder, answers, stays):
    made = folder().make(
        {"a": ("In its title", f"the rhine flows {sentence(1)}"), "b": f"elbe {sentence(2)}",
         "c": sentence(3)},
        train=[ask("0", "Where?", ["b"]), ask("1", "What?", ["c", "a"], answers=answers)],
    )  # fmt: skip
    out, report = made.clean(quality=QualityRules(answer_in_positive=True))
    assert len(out.questions()) == 1 + stays
    rules = report["questions"]["train"]["rules"]
    assert count(rules, "answer_not_in_positive") == (not stays)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_words": 0}, "min_words is 0"),
        ({"min_words": 9, "max_words": 8}, "no passage can pass"),
        ({"min_letters": 1.5}, "min_letters is 1.5"),
        ({"max_repeated_words": float("nan")}, "max_repeated_words is nan"),
        ({"max_symbols": -1}, "max_symbols is -1"),
        ({"max_symbols": float("nan")}, "max_symbols is nan"),
        ({"min_word_length": 5, "max_word_length": 4}, "min_word_length is 5"),
    ],
)
def test_impossible_bounds_are_named(settings, said):
    with pytest.raises(DataError, match=said):
        QualityRules(**settings)


@pytest.mark.parametrize("mark", ["", "/", "_", "+", "="])
def test_marks_in_base64_are_no_script_without_spaces(mark):
    line = mark.join(["QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo"] * 40)
    assert fault(line, min_words=1) == "word_length"
    assert fault("战国无双是由光荣开发的系列。" + line, min_words=1) == "word_length"


def test_texts_of_two_scripts_pass():
    assert fault("战国无双是由光荣和ω-force开发的系列的正统第三续作（2009）。") is None
    assert fault("The and/or rules of Pascal_case are well-known to us all, 我们也是。") is None
