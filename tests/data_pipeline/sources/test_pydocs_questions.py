import re

import pytest

from data_pipeline.sources.pydocs_questions import QuestionWriter
from data_pipeline.sources.stdlib import Docstring, docstrings


def words(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_questions_hide_the_name_and_do_not_quote_the_first_sentence(pydocs):
    by_name = {item.name: item for item in docstrings()}
    for entry in pydocs.entries:
        first = re.split(r"(?<=[.!?])\s|\n\s*\n", by_name[entry.name].text.strip())[0]
        assert len(set(entry.questions)) == len(entry.questions) <= 4
        for question in entry.questions:
            assert entry.name.rpartition(".")[2].lower() not in question.lower()
            assert f" {words(first)} " not in f" {words(question)} "


def write(*texts, names=None, parameters=()):
    names = names or [f"box.item{i}" for i in range(len(texts))]
    items = [
        Docstring(name, "box", "function", f"({', '.join(parameters)})", parameters, text)
        for name, text in zip(names, texts, strict=True)
    ]
    return QuestionWriter(items, [f"{i.name}{i.signature}\n{i.text}" for i in items])


def test_a_purpose_is_asked_in_other_words():
    writer = write("Return the number of running threads.", "Nothing alike in here.")
    assert "How do I get the count of running threads?" in writer.questions(0, 4)


def test_a_later_sentence_is_asked_about():
    later = "Blue threads are counted before the green ones are."
    writer = write(f"Return something. {later}", "Nothing alike in here.")
    assert f"Which Python function does the following describe? {later}" in writer.questions(0, 4)


def test_parameters_are_asked_about():
    writer = write("Do.", names=["box.mix"], parameters=("colour", "weight", "speed"))
    expected = "Which Python function takes the parameters colour, weight and speed?"
    assert writer.questions(0, 4) == [expected]


def test_what_fits_two_documents_is_not_asked():
    twins = ("Return the number of running threads.", "Return the number of threads running.")
    writer = write(*twins)
    assert writer.questions(0, 4) == writer.questions(1, 4) == []
    apart = write(*twins, names=["box.first", "bag.second"])
    assert all("box" in question for question in apart.questions(0, 4))
    assert apart.questions(0, 4)


def test_a_question_with_the_name_or_the_first_sentence_is_refused():
    text = "Open the large wooden door with a golden key."
    writer = write(text, "Nothing alike in here.", names=["box.unlock", "box.other"])
    assert writer.is_good(0, "Which function is for a door that is large and wooden?")
    assert not writer.is_good(0, "Which function can unlock a large wooden door?")
    assert not writer.is_good(0, "What does the large wooden door with a golden key?")
    assert not writer.is_good(0, "Which function is about a door?")
    assert not writer.is_good(1, "Which function is for a door that is large and wooden?")


@pytest.mark.parametrize(
    "text",
    [
        "Check for running green threads.",  # "find out for ..."
        "Set up the running green threads.",  # "choose up ..."
        "Return list of (green, running) threads.",  # "get list of"
        "Green threads are running.",  # no verb at its head
    ],
)
def test_a_purpose_that_would_read_wrong_is_not_asked(text):
    questions = write(text, "Nothing alike in here.").questions(0, 4)
    assert not any(question.startswith("How do I") for question in questions)
