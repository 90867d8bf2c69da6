import pytest

from data_pipeline.converters import convert
from tests.data_pipeline.converters.files import fails, named, questions, write_jsonl

RAW = {
    "question_id": 186358,
    "question_type": "YES_NO",
    "question": "上海迪士尼可以带吃的进去吗",
    "documents": [
        {"title": "甲", "paragraphs": ["一段", "二段"], "is_selected": True},
        {"title": "乙", "paragraphs": ["三段"], "is_selected": False},
        {"title": "丙", "paragraphs": ["四段"], "is_selected": False},
    ],
    "answers": ["可以", "不可以"],
    "yesno_answers": ["Yes", "No"],
}


def test_selected_documents_and_answer_docs_are_positives(tmp_path):
    preprocessed = {**RAW, "question_id": 2, "answer_docs": [2], "answer_spans": [[0, 1]]}
    nothing = {**RAW, "question_id": 3, "documents": RAW["documents"][1:], "answers": []}
    path = write_jsonl(tmp_path / "a.json", RAW, preprocessed, nothing)
    converted = convert("dureader", [path], tmp_path / "out")
    assert (converted.passages, converted.questions) == (3, {"train": 2})
    assert converted.left_out == {"questions without a passage that answers them": 1}
    raw, both = questions(tmp_path / "out")
    assert (raw.id, raw.question, raw.answers) == ("186358", RAW["question"], ("可以", "不可以"))
    assert named(tmp_path / "out", raw.positives) == ["甲"]
    assert named(tmp_path / "out", raw.negatives) == ["乙", "丙"]
    assert named(tmp_path / "out", both.positives) == ["甲", "丙"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer_docs": [3]}, '"answer_docs" names 3, but there are 3 documents: give'),
        ({"answer_docs": [True]}, '"answer_docs" names True'),
        ({"question_id": 1.5}, '"question_id" is 1.5: give an id'),
        ({"documents": [{"title": "x"}]}, 'documents[0]: "paragraphs" is missing: give a list'),
        ({"answers": "x"}, "\"answers\" is 'x': give a list"),
    ],
)
def test_broken(tmp_path, change, said):
    path = write_jsonl(tmp_path / "a.json", RAW, RAW | change)
    fails(tmp_path, "dureader", [path], f"{path}, line 2", said)
