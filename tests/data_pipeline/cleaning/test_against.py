import pytest

from data_pipeline.errors import DataError
from tests.data_pipeline.cleaning.conftest import ask, count, sentence

LONG = "which of the two rivers that meet at Koblenz is longer in kilometres"  # 13 words


def found(report, place=0):
    return report["against"][place]["found"]


@pytest.fixture
def evaluation(folder):
    return folder("eval").make(
        {"p": ("Rhine", sentence(1, 60)), "other": sentence(2)},
        test=[ask("e1", LONG, ["p"], answers=["the Rhine"]), ask("e2", "Who won it?", ["p"])],
    )


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        (f"{LONG.upper()}?!", "question_equal"),
        ("who won it", "question_equal"),
        (f"Tell me please, {LONG}, and why", "question_contained"),  # holds the other
        ("two rivers that meet at Koblenz is longer", "question_contained"),  # 8 of its words
        ("rivers that meet at Koblenz is longer", None),  # 7: too few to tell
        ("which of the two rivers that meet at Bonn is longer in kilometres", None),
        ("Who won it then?", None),
    ],
)
def test_questions(folder, evaluation, question, rule):
    made = folder().make({"a": sentence(5)}, train=[ask("1", question, ["a"])])
    out, report = made.clean(against=(str(evaluation.path),))
    assert len(out.questions()) == (rule is None)
    assert {name: entry["count"] for name, entry in found(report).items()} == (
        {} if rule is None else {rule: 1}
    )
    assert count(report["questions"]["train"]["rules"], "in_evaluation") == (rule is not None)


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        (sentence(1, 60).upper(), True),
        (sentence(1, 60) + " with more", True),
        (sentence(1, 60) + sentence(7, 60), False),
        (sentence(2), False),  # a passage of the set, but nobody's positive
    ],
)
@pytest.mark.parametrize("drop", [False, True])
def test_positive_passages(folder, evaluation, text, copied, drop):
    made = folder().make(
        {"a": ("Another title", text), "b": sentence(5)},
        train=[ask("1", "of a?", ["a", "b"]), ask("2", "of b?", ["b"], negatives=["a"])],
    )
    out, report = made.clean(against=(f"{evaluation.path}:test",), drop_passages=drop)
    assert [q.id for q in out.questions()] == (["2"] if copied else ["1", "2"])
    assert out.ids() == (["b"] if copied and drop else ["a", "b"])
    assert out.questions()[-1].negatives == (() if copied and drop else ("a",))
    assert count(found(report), "passage_copies_positive") == copied
    assert count(found(report), "question_with_copied_positive") == copied
    rules = report["questions"]["train"]["rules"]
    assert count(rules, "in_evaluation") == copied and count(rules, "positive_removed") == 0


def test_a_passage_stands_for_copies_that_were_removed(folder, evaluation):
    """b copies the positive; a, which stays for it, is less like it than the threshold."""
    text = sentence(1, 60).split()
    made = folder().make(
        {"a": " ".join(text[:47]), "b": " ".join(text[:55])},
        train=[ask("1", "of a?", ["a"])],
    )
    out, report = made.clean(against=(str(evaluation.path),))
    copies = found(report)["passage_copies_positive"]
    assert [example["id"] for example in copies["examples"]] == ["b"]
    assert out.ids() == ["a"] and out.questions() == []


def test_passages_that_quote_are_reported_and_stay(folder, evaluation):
    quoting = f"{sentence(5)} {LONG}? The Rhine. {sentence(6)}"
    partly = f"{sentence(7)} {' '.join(LONG.split()[1:])} {sentence(8)}"  # 12 words
    made = folder().make({"a": quoting, "b": partly})
    out, report = made.clean(against=(str(evaluation.path),))
    assert out.ids() == ["a", "b"]
    assert found(report)["passage_quotes_question"]["count"] == 1
    example = found(report)["passage_quotes_question"]["examples"][0]
    assert example["id"] == "a" and example["evaluation_id"] == "e1"


def test_the_ngram_can_be_set(folder, evaluation):
    made = folder().make({"b": f"{sentence(7)} two rivers that meet at {sentence(8)}"})
    _, report = made.clean(against=(str(evaluation.path),), ngram=5)
    assert count(found(report), "passage_quotes_question") == 1


def test_a_split_of_the_dataset_itself_is_held_out(folder):
    made = folder().make(
        {"a": sentence(1), "b": sentence(2)},
        train=[ask("1", "Who?", ["a"]), ask("2", "Where?", ["b"]), ask("3", "When?", ["b"])],
        dev=[ask("4", "who", ["b"])],
    )
    against = (f"{made.path}:dev",)
    with pytest.raises(DataError, match="--drop-passages"):
        made.clean(against=against, drop_passages=True)
    with pytest.raises(DataError, match="held out"):
        made.clean(against=(str(made.path),))
    out, report = made.clean(against=against)
    assert out.questions() == [] and [q.id for q in out.questions("dev")] == ["4"]
    assert count(found(report), "question_with_copied_positive") == 2
    assert count(found(report), "passage_copies_positive") == 0  # b is that passage
    assert count(found(report), "question_equal") == 1


def test_every_set_is_counted(folder, evaluation):
    second = folder("second").make({"p": sentence(3)}, test=[ask("x", "who won it", ["p"])])
    made = folder().make({"a": sentence(5)}, train=[ask("1", "Who won it?", ["a"])])
    _, report = made.clean(against=(str(evaluation.path), str(second.path)))
    assert [count(found(report, i), "question_equal") for i in (0, 1)] == [1, 1]
    assert report["questions"]["train"]["rules"]["in_evaluation"]["count"] == 1
    assert [one["questions"] for one in report["against"]] == [2, 1]


@pytest.mark.parametrize("name", ["nowhere", "nowhere:test", "eval:dev"])
def test_a_set_that_is_not_there_is_named(folder, evaluation, name):
    made = folder().make({"a": sentence(5)})
    with pytest.raises(DataError, match=name.replace(":", ".*")):
        made.clean(against=(str(evaluation.path.with_name("eval")).replace("eval", name),))


def test_a_set_without_its_positives_is_refused(folder):
    broken = folder("broken").make({"a": sentence(1)}, test=[ask("1", "Who?", ["gone"])])
    with pytest.raises(DataError, match="gone"):
        folder().make({"a": sentence(5)}).clean(against=(str(broken.path),))
