"""dpr: questions with positive, negative and hard negative contexts."""

import copy

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, passages, questions, write_json

DPR = {
    "dataset": "nq_train_psgs_w100",
    "question": "who purrs",
    "answers": ["Cats", "the cat"],
    "positive_ctxs": [
        {"title": "Cats", "text": "Cats purr.", "score": 1000, "passage_id": "11"},
    ],
    "negative_ctxs": [{"title": "Pigs", "text": "Pigs eat.", "score": 0, "passage_id": ""}],
    "hard_negative_ctxs": [{"title": "Dogs", "text": "Dogs bark.", "score": 9, "psg_id": 12}],
}


def test_dpr(tmp_path):
    without = {**DPR, "question": "who else", "positive_ctxs": []}
    path = write_json(tmp_path / "a.json", [DPR, without])
    converted = convert("dpr", [path], tmp_path / "out")
    assert (converted.passages, converted.questions) == (3, {"train": 1})
    assert converted.left_out == {"questions without a passage that answers them": 1}
    found = passages(tmp_path / "out")
    made = list(found)[2]
    assert found == {
        "11": ("Cats", "Cats purr."),
        "12": ("Dogs", "Dogs bark."),
        made: ("Pigs", "Pigs eat."),
    }
    (asked,) = questions(tmp_path / "out")
    wanted = Question(asked.id, "who purrs", ("Cats", "the cat"), ("11",), (), ("12", made))
    assert asked == wanted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("answers"), ': "answers" is missing: give a list'),
        (lambda r: r.pop("positive_ctxs"), ': "positive_ctxs" is missing: give a list'),
        (lambda r: r["negative_ctxs"][0].pop("text"), '.negative_ctxs[0]: "text" is missing'),
        (
            lambda r: r["positive_ctxs"][0].update(text="Cats hiss."),
            ".positive_ctxs[0]: the passage id '11' stands for another text in",
        ),
    ],
)
def test_broken_dpr(tmp_path, change, said):
    record = copy.deepcopy(DPR)
    change(record)
    path = write_json(tmp_path / "a.json", [DPR, record])
    message = fails(tmp_path, "dpr", [path], f"{path}, [1]{said}")
    if "stands for" in said:
        assert f"{path}, [0].positive_ctxs[0]: give" in message
