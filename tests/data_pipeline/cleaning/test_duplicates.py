import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning.near import NearIndex, Sketcher, jaccard, shingles
from data_pipeline.cleaning.text import digest, words
from tests.data_pipeline.cleaning.conftest import Folder, ask, count, sentence


def variants(rng, bases=12, each=6, length=60):
    """Texts in families: a base, and copies of it with some words changed."""
    for base in range(bases):
        text = sentence(base, length).split()
        yield " ".join(text)
        for _ in range(each):
            changed = list(text)
            for _ in range(rng.randrange(4)):
                changed[rng.randrange(length)] = f"new{rng.random()}"
            yield " ".join(changed)


def brute(texts, threshold):
    """text -> the first kept text it equals, or nearly; Jaccard of sets of strings."""
    kept = []
    stands = []
    for place, text in enumerate(texts):
        tokens = words(text)
        grams = {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}
        for other, theirs in kept:
            if len(grams & theirs) / len(grams | theirs) >= threshold:
                stands.append(other)
                break
        else:
            kept.append((place, grams))
            stands.append(place)
    return stands


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_index_finds_what_brute_force_finds(folder, threshold, seed):
    rng = random.Random(seed)
    texts = list(variants(rng))
    rng.shuffle(texts)
    made = folder().make({str(i): text for i, text in enumerate(texts)})
    out, _ = made.clean(near=threshold)
    expected = brute(texts, threshold)
    assert out.ids() == [str(i) for i, stands in enumerate(expected) if stands == i]
    assert len(out.ids()) < len(texts)


def test_jaccard_is_that_of_the_sets():
    one, other = shingles(list("abcdefgh")), shingles(list("abcdefgz"))
    assert jaccard(one, other) == 3 / 5
    assert jaccard(shingles([]), shingles([])) == 0
    assert jaccard(shingles(["a"]), shingles(["a"])) == 1


def test_the_threshold_is_honest():
    """A candidate below the threshold is no duplicate; the lowest number above it is found."""
    sketcher = Sketcher(0.8)
    index = NearIndex(sketcher)
    text = sentence(0, 60).split()
    near, far = [*text[:-3], "x", "y", "z"], [*text[:-12], *"abcdefghijkl"]
    for number, tokens in enumerate((far, near, near)):
        grams = shingles(tokens)
        index.add(number, grams, sketcher.signature(grams))
    grams = shingles(text)
    number, similarity = index.find(grams, sketcher.signature(grams))
    assert number == 1 and similarity == jaccard(grams, shingles(near)) >= 0.8


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


def test_one_mould_under_two_titles_is_two_things(folder):
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
