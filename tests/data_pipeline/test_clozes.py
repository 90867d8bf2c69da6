"""Questions with answers, made of a text alone."""

import random
import re

import pytest

from data_pipeline.clozes import Cloze, clozes, plain_questions

TEXT = (
    "The lighthouse of Alder Point was built in 1862 by the engineer Mary Stone. It stands on the "
    "northern cliff of the island. Its lamp can be seen from 24 miles when the air is clear. "
    "Stop."
)
CODE = """class tools.Box(size, *, lid=(1, 2), name='a, b', **more) -> Box
Hold things of one kind. Longer words follow here.
"""


def made(text, title="", seeds=range(40)):
    return {cloze for seed in seeds for cloze in clozes(text, random.Random(seed), title)}


def test_an_answer_stands_in_the_text_and_not_in_its_question():
    found = made(TEXT)
    assert found
    for cloze in found:
        assert cloze.answer in TEXT
        sentence = next(s for s in re.split(r"(?<=\.) ", TEXT) if cloze.answer in s)
        asked = set(cloze.question.rstrip("?").split()) - {"___"}
        shared = {word.lower() for word in re.findall(r"\w+", sentence)}
        assert len({word for word in asked if word.lower().strip(".,") in shared}) >= 2, cloze
        assert not set(cloze.answer.split()) <= set(cloze.question.split()), cloze


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("1862", ("When", "In what year", "What year")),
        ("24 miles", ("How many", "How much", "What number of")),
        ("Mary Stone", ("Who", "What", "Which", "Where")),
        ("the northern cliff", ("What",)),
    ],
)
def test_the_question_word_is_of_the_answers_kind(answer, words):
    asked = [c.question for c in made(TEXT) if c.answer == answer]
    worded = [question for question in asked if "___" not in question]
    assert worded and all(question.startswith(words) and question[-1] == "?" for question in worded)
    assert any("___" in question for question in asked)


def test_a_pronoun_gives_way_to_the_title():
    gaps = [c.question for c in made(TEXT, "Alder Light") if c.answer == "the northern cliff"]
    assert any("Alder Light stands on ___" in question for question in gaps)
    assert not any(re.match(r"It\b", question) for question in gaps)


def test_an_auxiliary_moves_to_the_front_as_a_person_asks():
    asked = {c.question for c in made(TEXT)}
    built = "was the lighthouse of Alder Point built"
    assert f"When {built} by the engineer Mary Stone?" in asked
    assert f"What year {built} in by the engineer Mary Stone?" in asked
    assert "How many can its lamp be seen from when the air is clear?" in asked
    first = {c.question for c in made("Mary Stone found the old road in the hills.")}
    assert "Who found the old road in the hills?" in first


@pytest.mark.parametrize(
    ("purpose", "how", "which"),
    [
        ("Return the size of a box.", "return the size of a box", "returns the size of a box"),
        ("Creates a box.", "create a box", "creates a box"),
        ("Tries all keys.", "try all keys", "tries all keys"),
        ("Matches any box.", "match any box", "matches any box"),
        ("Normalizes the box.", "normalize the box", "normalizes the box"),
        ("Caches any box.", "cache any box", "caches any box"),
        ("Reaches any box.", "reach any box", "reaches any box"),
        ("Parses each box.", "parse each box", "parses each box"),
        ("Undoes the box.", "undo the box", "undoes the box"),
        ("Undo the box.", "undo the box", "undoes the box"),
        ("Ties a box.", "tie a box", "ties a box"),
        ("Fixes a box.", "fix a box", "fixes a box"),
        ("Process the box.", "process the box", "processes the box"),
    ],
)
def test_what_serves_a_purpose_is_asked_for_without_its_name(purpose, how, which):
    found = made(f"tools.box(size)\n{purpose}\n")
    asked = {cloze.question for cloze in found if cloze.answer == "tools.box"}
    assert asked == {f"How do I {how}?", f"Which function {which}?"}


@pytest.mark.parametrize(
    "purpose", ["This is the end.", "Whether the box is open.", "Abstract class of boxes."]
)
def test_what_tells_no_purpose_is_not_asked_for_one(purpose):
    assert all(cloze.answer != "tools.box" for cloze in made(f"tools.box(size)\n{purpose}\n"))


def test_signatures_are_asked_for_what_they_say():
    assert {
        Cloze("Which parameters does tools.Box take?", "size, lid, name, **more"),
        Cloze("What is the default of lid in tools.Box?", "(1, 2)"),
        Cloze("What is the default of name in tools.Box?", "'a, b'"),
        Cloze("What does tools.Box do?", "Hold things of one kind."),
    } <= made(CODE)


@pytest.mark.parametrize(
    "text", ["", "Too short.", "no end " * 60, "((((", "f(\nx", "名前は猫である。"]
)
def test_a_text_without_a_question_gives_none(text):
    assert not made(text)


def test_the_same_seed_makes_the_same_questions():
    assert list(clozes(TEXT, random.Random(3))) == list(clozes(TEXT, random.Random(3)))


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        (TEXT, ["When was the lighthouse of Alder Point built?"]),
        (CODE, ["What does tools.Box do?"]),
        ("f(x)\nReturn a box.", {"Which function returns a box?", "How do I return a box?"}),
        ("The code of the harbour is 4711.", ["What is the code of the harbour?"]),
        ("One of the words for it is: moss. Rain.", ["What is one of the words for it?"]),
        ("Cranes sleep standing. " * 9, []),
        ("It is the end of the day, they say.", []),
    ],
)  # fmt: skip
def test_plain_questions_are_what_a_person_would_ask(text, questions):
    found = list(plain_questions(text))
    assert found[:1] == questions[:1] if isinstance(questions, list) else found[0] in questions
    assert found == list(plain_questions(text)), "the same every time"
    assert list(plain_questions(text, " A title")) == [*found, "What is said about “A title”?"]
