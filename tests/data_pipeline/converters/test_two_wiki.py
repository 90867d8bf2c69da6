"""2wiki: the steps of its evidences."""

import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, questions, steps, write_json


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
