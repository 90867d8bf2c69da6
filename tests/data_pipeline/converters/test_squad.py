import copy
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import (
    fails,
    passages,
    questions,
    write,
    write_json,
    write_jsonl,
)

QA = {
    "id": "56be85543aeaaa14008c9063",
    "question": "What do cats do?",
    "answers": [
        {"text": "purr", "answer_start": 5},
        {"text": "purr", "answer_start": 5},
        {"text": "they purr", "answer_start": 0},
    ],
    "is_impossible": False,
}
NO_ANSWER = {
    "id": "5a",
    "question": "What do cats sell?",
    "answers": [],
    "plausible_answers": [{"text": "purr", "answer_start": 5}],
    "is_impossible": True,
}
SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Cats", "paragraphs": [
            {"context": "Cats purr.", "qas": [QA, NO_ANSWER]},
            {"context": "Cats sleep.", "qas": []},
        ]},
        {"title": "Dogs", "paragraphs": [{"context": "Dogs bark.", "qas": []}]},
    ],
}  # fmt: skip


def test_squad_2(tmp_path):
    converted = convert("squad", [write_json(tmp_path / "a.json", SQUAD)], tmp_path / "out")
    assert (converted.passages, converted.questions) == (3, {"train": 1})
    assert converted.left_out == {"unanswerable questions": 1}
    found = passages(tmp_path / "out")
    assert list(found.values()) == [
        ("Cats", "Cats purr."),
        ("Cats", "Cats sleep."),
        ("Dogs", "Dogs bark."),
    ]
    assert questions(tmp_path / "out") == [
        Question(QA["id"], "What do cats do?", ("purr", "they purr"), (next(iter(found)),))
    ]


def test_files_of_its_form(tmp_path):
    """CMRC 2018 and DuReader-robust: no title, ids beside it; SQuAD 1.1: nothing impossible."""
    chinese = {
        "data": [{"paragraphs": [
            {"id": "DEV_0", "context": "猫会叫。", "qas": [
                {"id": "DEV_0_QUERY_0", "question": "猫会什么？",
                 "answers": [{"text": "叫", "answer_start": 2}]},
            ]},
        ]}],
    }  # fmt: skip
    paths = [write_json(tmp_path / f"{name}.json", chinese) for name in "ab"]
    converted = convert("squad", paths, tmp_path / "out", ["train", "dev"])
    assert (converted.passages, converted.repeated_passages) == (1, 1)
    assert converted.questions == {"train": 1, "dev": 1}
    asked = questions(tmp_path / "out", "dev")[0]
    assert (asked.id, asked.answers) == ("DEV_0_QUERY_0", ("叫",))
    assert passages(tmp_path / "out")[asked.positives[0]] == ("", "猫会叫。")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda qa: qa.pop("id"), '"id" is missing: give an id'),
        (lambda qa: qa.update(question=5), '"question" is 5: give a string'),
        (lambda qa: qa.update(answers=[]), '"answers" is empty: give one, or mark'),
        (lambda qa: qa.update(is_impossible="no"), "\"is_impossible\" is 'no': give true or"),
        (lambda qa: qa["answers"][1].pop("text"), '.answers[1]: "text" is missing'),
        (lambda qa: qa.update(answers=["x"]), ".answers[0]: give a JSON object, not str"),
    ],
)
def test_broken_records_are_named_by_their_path(tmp_path, change, said):
    data = copy.deepcopy(SQUAD)
    change(data["data"][0]["paragraphs"][0]["qas"][0])
    path = write_json(tmp_path / "a.json", data)
    fails(tmp_path, "squad", [path], f"{path}, data[0].paragraphs[0].qas[0]", said)


def test_broken_files(tmp_path):
    data = copy.deepcopy(SQUAD)
    data["data"][1]["paragraphs"][0].pop("context")
    path = write_json(tmp_path / "a.json", data)
    fails(tmp_path, "squad", [path], f'{path}, data[1].paragraphs[0]: "context" is missing: give')
    path = write(tmp_path / "a.json", json.dumps(SQUAD, indent=1).replace("true", "yes", 1))
    line = path.read_text()[: path.read_text().index("yes")].count("\n") + 1
    fails(tmp_path, "squad", [path], f"{path}, line {line}: not JSON")
    path = write_json(tmp_path / "a.json", [])
    fails(tmp_path, "squad", [path], f'{path}, line 1: give a JSON object with a list "data"')


ROWS = [
    {"id": "1", "title": "A", "context": "Alan saw a bird.", "question": "Who saw a bird?",
     "answers": {"text": ["Alan", "Alan"], "answer_start": [0, 0]}},
    {"id": "2", "title": "A", "context": "Alan saw a bird.", "question": "Who saw a cat?",
     "answers": {"text": [], "answer_start": []}},
]  # fmt: skip


def rows_of(folder, name):
    """The rows in a file of a kind."""
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), folder / name)
        return folder / name
    return write_jsonl(folder / name, *ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_rows_of_hugging_face(tmp_path, name):
    converted = convert("squad", [rows_of(tmp_path, name)], tmp_path / "out")
    assert (converted.passages, converted.left_out) == (1, {"unanswerable questions": 1})
    (asked,) = questions(tmp_path / "out")
    assert (asked.id, asked.question, asked.answers) == ("1", "Who saw a bird?", ("Alan",))
    assert passages(tmp_path / "out") == {asked.positives[0]: ("A", "Alan saw a bird.")}


def test_broken_rows(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[0], {**ROWS[0], "answers": ["Alan"]})
    fails(tmp_path, "squad", [path], f"{path}, line 2: \"answers\" is ['Alan']: give an object")
    path = write(tmp_path / "a.parquet", "no table")
    fails(tmp_path, "squad", [path], "a.parquet cannot be read as Parquet")
