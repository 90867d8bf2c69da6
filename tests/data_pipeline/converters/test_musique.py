"""musique: chains of two to four passages."""

import copy

import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, named, questions, write_jsonl

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
