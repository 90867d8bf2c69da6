"""Questions follow their passages; equal ones become one."""

from tests.data_pipeline.cleaning.conftest import ask, count, sentence


def test_equal_questions_become_one(folder):
    made = folder().make(
        {name: sentence(i) for i, name in enumerate("abcd")},
        train=[
            ask("1", "Who is it?", ["a"], answers=["x", "y"], negatives=["b", "d"]),
            ask("2", "who is it", ["a"], answers=["y", "z"], steps=[["a"]]),
            ask("3", "WHO is it?!", ["b"], answers=["w"]),
            ask("4", "And who?", ["c", "d"], steps=[["c"], ["d"]]),
            ask("5", "and who", ["a", "b"], steps=[["a"], ["b"]]),
        ],
        dev=[ask("6", "Who is it?", ["c"])],
    )
    out, report = made.clean()
    one, two = out.questions()
    assert one.any_of and not two.any_of, "of 4 and 5 each needs both of its own"
    assert one.id == "1" and one.answers == ("x", "y", "z", "w")
    assert one.positives == ("a", "b") and one.negatives == ("d",) and one.steps == ()
    assert two.steps == (("c", "a"), ("d", "b")) and two.positives == ("c", "d", "a", "b")
    rules = report["questions"]["train"]["rules"]
    assert count(rules, "merged_same_positives") == 1
    assert count(rules, "merged_other_positives") == 2
    assert [q.id for q in out.questions("dev")] == ["6"]


def test_a_question_goes_with_its_positive(folder):
    made = folder().make(
        {"short": "too short", "a": sentence(1)},
        train=[
            ask("1", "one?", ["a", "short"]),
            ask("2", "two?", ["a"], negatives=["short"]),
            ask("3", "three?", []),
            ask("4", "four?", ["a", "short"], any_of=True),
            ask("5", "five?", ["short"], any_of=True),
        ],
    )
    out, report = made.clean()
    assert [(q.id, q.negatives) for q in out.questions()] == [("2", ()), ("4", ())]
    assert out.questions()[1].positives == ("a",) and not out.questions()[1].any_of
    rules = report["questions"]["train"]["rules"]
    assert count(rules, "positive_removed") == 2 and count(rules, "no_positives") == 1
    assert report["passages"]["rules"]["too_short"]["examples"][0]["id"] == "short"
