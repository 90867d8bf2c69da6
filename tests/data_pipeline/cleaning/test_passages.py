"""Which passages are kept, and what stands for the others."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning.text import digest
from data_pipeline.errors import DataError
from tests.data_pipeline.cleaning.conftest import Folder, ask, count, sentence


def test_the_first_is_kept_and_ids_follow(folder):
    text = sentence(1)
    made = folder().make(
        {
            "a": text,
            "b": sentence(2),
            "same": text.upper() + "!",
            "close": text + " more",
            "short": sentence(3, 6),
        },
        train=[
            ask("1", "what?", ["same", "b", "a"], steps=[["close"], ["a", "b"]]),
            ask("2", "who?", ["b"], negatives=["short", "same", "close", "a"]),
            ask("3", "where?", ["close"], negatives=["a", "short"]),
        ],
    )
    out, report = made.clean()
    assert out.ids() == ["a", "b", "short"]
    one, two, three = out.questions()
    assert (one.positives, one.steps) == (("a", "b"), (("a",), ("b",)))
    assert two.negatives == ("short", "a")
    assert three.positives == ("a",) and three.negatives == ("short",)
    rules = report["passages"]["rules"]
    assert count(rules, "exact_duplicate") == count(rules, "near_duplicate") == 1
    assert rules["near_duplicate"]["examples"][0]["kept"] == "a"
    assert count(report["questions"]["train"]["rules"], "negative_was_positive") == 1


def test_near_zero_looks_for_exact_duplicates_alone(folder):
    text = sentence(1)
    out, _ = folder().make({"a": text, "b": text + " more", "c": text + "."}).clean(near=0)
    assert out.ids() == ["a", "b"]


def test_one_wording_under_two_titles_is_two_things(folder):
    text = sentence(1, 60)
    made = folder().make(
        {
            "lynn": ("Lynn Township", f"lynn {text}"),
            "goshen": ("Goshen Township", f"goshen {text}"),
            "again": ("lynn township", f"Lynn! {text} indeed"),
            "none": f"some {text}",
            "exact": ("Goshen", f"goshen {text}"),
        }
    )
    assert made.clean()[0].ids() == ["lynn", "goshen"]


def test_chinese_is_compared_by_characters(folder):
    text = "战国无双三是由光荣和开发的战国无双系列的正统第三续作本作以三大故事为主轴"
    made = folder().make({"a": text, "b": text + "的", "c": text[::-1]})
    out, _ = made.clean()
    assert out.ids() == ["a", "c"]


def test_two_passages_of_one_id(folder):
    made = folder().make({"a": sentence(1)})
    path = made.path / "corpus.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"two passages have the id 'a'"):
        made.clean()


TEXTS = [sentence(0, 12), sentence(0, 12) + " !", sentence(0, 12).upper(), sentence(1, 12), "no"]


@st.composite
def datasets(draw):
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8))
    names = st.sampled_from([str(i) for i in range(len(texts))])
    groups = st.lists(names, max_size=4)
    questions = [
        {
            "id": str(i),
            "question": draw(st.sampled_from(["Who?", "who", "Where?"])),
            "positives": draw(groups),
            "negatives": draw(groups),
            "steps": draw(st.lists(groups, max_size=2)),
        }
        for i in range(draw(st.integers(0, 5)))
    ]
    return [*texts, TEXTS[3]], questions


@given(datasets())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_kept_names_what_is_there(tmp_path_factory, made):
    texts, questions = made
    path = tmp_path_factory.mktemp("data") / "set"
    original = Folder(path).make({str(i): t for i, t in enumerate(texts)}, train=questions)
    out, report = original.clean(near=0)
    ids = out.ids()
    kept = [digest(texts[int(name)]) for name in ids]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {digest(text) for text in texts if text != "no"}
    assert ids == sorted(ids, key=int)
    asked = out.questions()
    assert len({digest(q.question) for q in asked}) == len(asked)
    for q in asked:
        named = {*q.positives, *q.negatives, *sum(q.steps, ())}
        assert q.positives and named <= set(ids)
        assert not set(q.negatives) & {*q.positives, *sum(q.steps, ())}
        flat = sum(q.steps, ())
        assert len(set(flat)) == len(flat) and all(q.steps)
    part = report["questions"]["train"] if questions else {"written": 0}
    assert part["written"] == len(asked)
