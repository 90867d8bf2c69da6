import gzip
import json

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question, read_passages
from tests.data_pipeline.converters.files import fails, passages, questions, write, write_jsonl

CATS = {"id": "1", "title": "Cats", "text": "Cats purr."}
DOGS = {"id": 2, "title": None, "text": "Dogs bark."}
ASKED = {
    "id": "a",
    "question": "Who?",
    "answers": ["cats"],
    "positives": ["1", "2"],
    "steps": [["2"], ["1"]],
    "note": "ignored",
}


@pytest.fixture
def folder(tmp_path):
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps(CATS) + "\n" + json.dumps(DOGS) + "\n")
    write_jsonl(tmp_path / "in" / "questions.train.jsonl", ASKED)
    write_jsonl(tmp_path / "in" / "questions.dev.jsonl", {"question": "?", "positives": ["2"]})
    (tmp_path / "corpus.jsonl.gz").rename(tmp_path / "in" / "corpus.jsonl.gz")
    return tmp_path / "in"


def test_a_folder_with_all_its_splits_or_those_asked_for(tmp_path, folder):
    converted = convert("jsonl", [folder], tmp_path / "out")
    assert converted.questions == {"dev": 1, "train": 1}
    assert passages(tmp_path / "out") == {"1": ("Cats", "Cats purr."), "2": ("", "Dogs bark.")}
    asked = Question("a", "Who?", ("cats",), ("1", "2"), (("2",), ("1",)))
    assert questions(tmp_path / "out") == [asked]
    assert questions(tmp_path / "out", "dev") == [Question("0", "?", (), ("2",))]
    assert convert("jsonl", [folder], tmp_path / "dev", ["dev"]).questions == {"dev": 1}
    again = convert("jsonl", [tmp_path / "out"], tmp_path / "again")
    assert (again.passages, again.questions, again.left_out) == (2, {"dev": 1, "train": 1}, {})


def test_a_corpus_and_question_files(tmp_path, folder):
    corpus, asked = folder / "corpus.jsonl.gz", folder / "questions.train.jsonl"
    assert convert("jsonl", [corpus, asked], tmp_path / "a", ["x"]).questions == {"x": 1}
    assert convert("jsonl", [corpus], tmp_path / "b").questions == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({**ASKED, "positives": ["1", "9"], "steps": []}, "no passage '9' in the corpus"),
        ({**ASKED, "negatives": ["9"]}, "no passage '9' in the corpus"),
        ({**ASKED, "steps": [["2"]]}, '"steps" and "positives" name different passages'),
        ({**ASKED, "positives": "1"}, "\"positives\" is '1': give a list of strings"),
        ({"positives": ["1"]}, '"question" is None'),
    ],
)
def test_broken_questions(tmp_path, folder, line, said):
    path = write_jsonl(folder / "questions.train.jsonl", ASKED, line)
    fails(tmp_path, "jsonl", [folder], f"{path}, line 2: ", said)


def test_broken_passages(tmp_path, folder):
    path = write_jsonl(tmp_path / "corpus.jsonl", CATS, DOGS, {**CATS, "text": "Cats hiss."})
    fails(tmp_path, "jsonl", [path], f"{path}, line 3: the passage id '1'", f"{path}, line 1: give")
    path = write(tmp_path / "corpus.jsonl", json.dumps(CATS) + "\n{,}\n")
    fails(tmp_path, "jsonl", [path], f"{path}, line 2: not JSON")
    fails(tmp_path, "jsonl", [tmp_path], "questions.x.jsonl", splits=["x"])


def test_metadata_is_kept_and_missing_ids_are_numbers(tmp_path):
    write_jsonl(
        tmp_path / "in" / "corpus.jsonl",
        {"id": None, "text": "Cats purr.", "metadata": {"page": 1}},
        {"id": "", "text": "Dogs bark.", "metadata": [2]},
        {"text": "Dogs  bark.", "metadata": [3]},
    )
    write_jsonl(
        tmp_path / "in" / "questions.train.jsonl", {"id": None, "question": "?", "positives": ["0"]}
    )
    converted = convert("jsonl", [tmp_path / "in"], tmp_path / "out")
    found = list(read_passages(tmp_path / "out" / "corpus.jsonl"))
    assert [(p.id, p.metadata) for p in found] == [("0", {"page": 1}), ("1", [2])]
    assert questions(tmp_path / "out") == [Question("0", "?", (), ("0",))]
    lost = "metadata of repeated passages that was not that of the first"
    assert converted.left_out == {lost: 1}
