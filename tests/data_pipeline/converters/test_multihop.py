"""hotpotqa, 2wiki and musique: chains of passages."""

import copy

import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import (
    fails,
    named,
    passages,
    questions,
    write_json,
    write_jsonl,
)

BRIDGE = {
    "_id": "5a7a06935542990198eaf050",
    "type": "bridge",
    "level": "medium",
    "question": "When was the director of Big Film born?",
    "answer": "1950",
    "supporting_facts": [["Jo Ray", 0], ["Big Film (1999 film)", 0], ["Jo Ray", 1]],
    "context": [
        ["Jo Ray", ["Jo Ray directs.", " Born in 1950."]],
        ["Noise", ["Nothing here."]],
        ["Big Film (1999 film)", ["Big Film is a film by Jo Ray.", ""]],
    ],
}
COMPARISON = {
    **BRIDGE,
    "_id": "b",
    "type": "comparison",
    "question": "Are Noise and Jo Ray both people?",
    "answer": "no",
    "supporting_facts": [["Noise", 0], ["Jo Ray", 0]],
}


def steps(folder):
    return [[sorted(named(folder, step)) for step in q.steps] for q in questions(folder)]


def test_hotpotqa(tmp_path):
    path = write_json(tmp_path / "a.json", [BRIDGE, COMPARISON])
    converted = convert("hotpotqa", [path], tmp_path / "out")
    assert (converted.passages, converted.repeated_passages) == (3, 3)
    assert converted.questions == {"train": 2} and converted.left_out == {}
    assert list(passages(tmp_path / "out").values()) == [
        ("Jo Ray", "Jo Ray directs. Born in 1950."),
        ("Noise", "Nothing here."),
        ("Big Film (1999 film)", "Big Film is a film by Jo Ray."),
    ]
    bridge, comparison = questions(tmp_path / "out")
    assert (bridge.id, bridge.question) == (BRIDGE["_id"], BRIDGE["question"])
    assert bridge.answers == ("1950",)
    assert named(tmp_path / "out", bridge.positives) == ["Jo Ray", "Big Film (1999 film)"]
    assert named(tmp_path / "out", bridge.negatives) == ["Noise"]
    assert named(tmp_path / "out", comparison.negatives) == ["Big Film (1999 film)"]
    assert steps(tmp_path / "out") == [
        [["Big Film (1999 film)"], ["Jo Ray"]],
        [["Jo Ray", "Noise"]],
    ]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        # the answer alone tells, or the name in the question alone
        ({"question": "When was the director of that film born?"}, "Big Film (1999 film)"),
        ({"answer": "long ago"}, "Big Film (1999 film)"),
        ({"answer": "yes"}, "Big Film (1999 film)"),
        ({"answer": "Jo Ray"}, "Big Film (1999 film)"),  # both passages hold it
        # they contradict each other, or nothing tells
        ({"question": "Which film is by Jo Ray?"}, None),
        ({"question": "When?", "answer": "never"}, None),
        ({"question": "When?", "answer": "no"}, None),
        ({"question": "Is Jo Ray in Big Film?", "answer": "Jo"}, None),
        ({"question": "When?", "answer": "195"}, None),  # a part of a word is no answer
        ({"supporting_facts": [["Jo Ray", 0]]}, None),
        ({"supporting_facts": [["Jo Ray", 0], ["Big Film (1999 film)", 0], ["Noise", 0]]}, None),
    ],
)
def test_a_bridge_has_steps_only_where_its_order_is_plain(tmp_path, change, first):
    convert("hotpotqa", [write_json(tmp_path / "a.json", [BRIDGE | change])], tmp_path / "out")
    found = steps(tmp_path / "out")[0]
    assert (found[0] if found else None) == ([first] if first else None)


def test_retrieved_contexts_may_lack_the_supporting_paragraphs(tmp_path):
    lacking = {**BRIDGE, "context": BRIDGE["context"][:2]}
    path = write_json(tmp_path / "a.json", [lacking, COMPARISON | {"context": BRIDGE["context"]}])
    converted = convert("hotpotqa", [path], tmp_path / "out", ["dev"])
    assert converted.questions == {"dev": 1}
    assert converted.left_out == {
        "questions whose supporting paragraphs are not in their context": 1
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": [["Jo Ray", "one text"]]}, '"context[0]" is wrong: give [title, [sentence'),
        ({"context": None}, '"context" is None: give a list'),
        ({"supporting_facts": [["Jo Ray"]]}, '"supporting_facts[0]" is wrong: give [title'),
        ({"type": "guess"}, "\"type\" is 'guess': give bridge or comparison"),
        ({"answer": 5}, '"answer" is 5: give a string'),
        ({"_id": None}, '"_id" is None: give an id'),
    ],
)
def test_broken_hotpotqa(tmp_path, change, said):
    path = write_json(tmp_path / "a.json", [COMPARISON, BRIDGE | change])
    fails(tmp_path, "hotpotqa", [path], f"{path}, [1]: ", said)


def wiki(kind, supporting, evidences):
    people = [[name, [f"About {name}."]] for name in ("A", "B (film)", "C", "D", "E")]
    return {
        "_id": "1", "type": kind, "question": "Who?", "answer": "x", "context": people,
        "entity_ids": "Q1_Q2", "supporting_facts": [[title, 0] for title in supporting],
        "evidences": evidences,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (
            wiki("compositional", ["C", "B (film)"], [["B", "director", "C"], ["C", "wife", "x"]]),
            [["B (film)"], ["C"]],
        ),
        (
            wiki("inference", ["A", "C"], [["C", "father", "A"], ["A", "mother", "x"]]),
            [["C"], ["A"]],
        ),
        (wiki("comparison", ["A", "C"], [["A", "born", "1"], ["C", "born", "2"]]), [["A", "C"]]),
        (
            wiki(
                "bridge_comparison",
                ["A", "C", "B (film)", "D"],
                [["A", "by", "C"], ["B", "by", "D"], ["C", "born", "1"], ["D", "born", "2"]],
            ),
            [["A", "B (film)"], ["C", "D"]],
        ),
        # an entity without a title, a passage without evidence, a circle, one step too few
        (wiki("inference", ["A", "C"], [["C", "father", "X"], ["X", "mother", "x"]]), []),
        (wiki("inference", ["A", "C", "D"], [["C", "father", "A"], ["A", "mother", "x"]]), []),
        (wiki("inference", ["A", "C"], [["C", "father", "A"], ["A", "child", "C"]]), []),
        (wiki("compositional", ["A", "C"], [["A", "by", "1"], ["C", "by", "2"]]), []),
        (wiki("compositional", ["A", "C"], []), []),
    ],
)
def test_2wiki_has_the_steps_of_its_evidences(tmp_path, record, wanted):
    converted = convert("2wiki", [write_json(tmp_path / "a.json", [record])], tmp_path / "out")
    assert (converted.passages, converted.questions) == (5, {"train": 1})
    assert steps(tmp_path / "out") == [wanted]
    found = questions(tmp_path / "out")[0]
    assert len(found.positives) == len(record["supporting_facts"])
    assert len(found.negatives) == 5 - len(found.positives)


def test_broken_2wiki(tmp_path):
    for change, said in (
        ({"evidences": [["A", "by"]]}, '"evidences[0]" is wrong: give [subject, relation'),
        ({"type": "bridge"}, "\"type\" is 'bridge': give comparison, compositional"),
    ):
        record = wiki("comparison", ["A"], [["A", "born", "1"]]) | change
        path = write_json(tmp_path / "a.json", [record])
        fails(tmp_path, "2wiki", [path], f"{path}, [0]: ", said)


MUSIQUE = {
    "id": "2hop__482757_12019",
    "paragraphs": [
        {"idx": 0, "title": "Place", "paragraph_text": "In Rome.", "is_supporting": True},
        {"idx": 1, "title": "Noise", "paragraph_text": "Nothing.", "is_supporting": False},
        {"idx": 2, "title": "Film", "paragraph_text": "Shot there.", "is_supporting": True},
    ],
    "question": "Where is it?",
    "question_decomposition": [
        {"id": 1, "question": "Film >> place", "answer": "there", "paragraph_support_idx": 2},
        {"id": 2, "question": "where is #1", "answer": "Rome", "paragraph_support_idx": 0},
    ],
    "answer": "Rome",
    "answer_aliases": ["Roma"],
    "answerable": True,
}


def test_musique(tmp_path):
    no_answer = copy.deepcopy(MUSIQUE) | {"answerable": False}
    no_answer["question_decomposition"][1]["paragraph_support_idx"] = None
    path = write_jsonl(tmp_path / "a.jsonl", MUSIQUE, no_answer)
    converted = convert("musique", [path], tmp_path / "out", ["dev"])
    assert (converted.passages, converted.questions) == (3, {"dev": 1})
    assert converted.left_out == {"unanswerable questions": 1}
    (found,) = questions(tmp_path / "out", "dev")
    assert (found.id, found.question) == (MUSIQUE["id"], "Where is it?")
    assert found.answers == ("Rome", "Roma")
    assert named(tmp_path / "out", found.positives) == ["Place", "Film"]
    assert [named(tmp_path / "out", step) for step in found.steps] == [["Film"], ["Place"]]
    assert named(tmp_path / "out", found.negatives) == ["Noise"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("answerable"), ': "answerable" is missing: give true or false'),
        (lambda r: r["paragraphs"][1].pop("title"), ', paragraphs[1]: "title" is missing'),
        (lambda r: r["paragraphs"][1].update(idx=0), ', paragraphs[1]: "idx" 0 is that of'),
        (
            lambda r: r["question_decomposition"][0].update(paragraph_support_idx=7),
            ', question_decomposition[0]: "paragraph_support_idx" is 7: give the idx',
        ),
        (lambda r: r.update(answer_aliases=[1]), ': "answer_aliases" is [1]: give a list of'),
    ],
)
def test_broken_musique(tmp_path, change, said):
    record = copy.deepcopy(MUSIQUE) | {"id": "other"}
    change(record)
    path = write_jsonl(tmp_path / "a.jsonl", MUSIQUE, record)
    fails(tmp_path, "musique", [path], f"{path}, line 2{said}")
