"""hotpotqa: bridges, whose order the question or the answer tells, and comparisons."""

import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import (
    fails,
    named,
    passages,
    questions,
    steps,
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


def test_rows_of_hugging_face_give_what_the_file_gives(tmp_path):
    columns = {
        key: {first: [pair[0] for pair in BRIDGE[key]], second: [pair[1] for pair in BRIDGE[key]]}
        for key, first, second in (
            ("context", "title", "sentences"),
            ("supporting_facts", "title", "sent_id"),
        )
    }
    row = {key: value for key, value in BRIDGE.items() if key != "_id"} | columns
    path = write_jsonl(tmp_path / "a.jsonl", {**row, "id": BRIDGE["_id"]})
    convert("hotpotqa", [path], tmp_path / "rows")
    convert("hotpotqa", [write_json(tmp_path / "a.json", [BRIDGE])], tmp_path / "list")
    assert questions(tmp_path / "rows") == questions(tmp_path / "list") != []
    assert passages(tmp_path / "rows") == passages(tmp_path / "list")
    row["supporting_facts"] = {"title": ["Big Film"], "sent_id": []}
    path = write_jsonl(tmp_path / "a.jsonl", {**row, "id": "1"})
    said = 'line 1, supporting_facts: "title" has 1, "sent_id" 0: give as many'
    fails(tmp_path, "hotpotqa", [path], said)
