import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, passages, questions, write, write_json


def page(name, **more):
    return {"Filename": name, "Title": name.split(".")[0], **more}


def record(id, pages, results=(), **more):
    return {
        "Answer": {"Value": "Rome", "Aliases": ["Roma", "The Eternal City"], "Type": "Freebase"},
        "EntityPages": [page(name, DocSource="TagMe") for name in pages],
        "SearchResults": [page(name, Rank=0, Url="http://") for name in results],
        "Question": "Where is it?",
        "QuestionId": id,
        "QuestionSource": "http://",
        **more,
    }


@pytest.fixture
def evidence(tmp_path):
    write(tmp_path / "evidence" / "wikipedia" / "Italy.txt", "It is in the Eternal  City!")
    write(tmp_path / "evidence" / "wikipedia" / "Romance.txt", "A book.")
    write(tmp_path / "evidence" / "web" / "1" / "1_2.txt", "Seen in ROMA.\n")
    return tmp_path / "evidence"


def test_documents_that_contain_an_answer_are_positives(tmp_path, evidence):
    data = {
        "Data": [
            record("tc_1", ["Italy.txt", "Romance.txt", "Lost.txt"], ["1/1_2.txt"]),
            record("tc_2", ["Romance.txt"]),
            record("tc_3", ["Italy.txt"], Question="And this?"),
        ],
        "Domain": "Web", "VerifiedEval": False, "Version": 1.0,
    }  # fmt: skip
    data["Data"][2]["EntityPages"].append({"Title": "No file"})
    path = write_json(tmp_path / "a.json", data)
    converted = convert("triviaqa", [path], tmp_path / "out", evidence=evidence)
    assert (converted.passages, converted.questions) == (3, {"train": 2})
    assert converted.left_out == {
        "evidence documents that are not in the folder": 2,
        "questions whose answer is in no evidence document": 1,
    }
    assert passages(tmp_path / "out") == {
        "wikipedia/Italy.txt": ("Italy", "It is in the Eternal  City!"),
        "wikipedia/Romance.txt": ("Romance", "A book."),
        "web/1/1_2.txt": ("1/1_2", "Seen in ROMA."),
    }
    answers = ("Rome", "Roma", "The Eternal City")
    both = ("wikipedia/Italy.txt", "web/1/1_2.txt")
    assert questions(tmp_path / "out") == [
        Question("tc_1", "Where is it?", answers, both, (), ("wikipedia/Romance.txt",), True),
        Question("tc_3", "And this?", answers, ("wikipedia/Italy.txt",)),
    ]


def test_broken(tmp_path, evidence):
    for change, said in (
        ({"Answer": "Rome"}, "Data[0]: \"Answer\" is 'Rome': give an object"),
        ({"Answer": {"Aliases": []}}, 'Data[0].Answer: "Value" is missing: give a string'),
        ({"EntityPages": ["x"]}, "Data[0].EntityPages[0]: give a JSON object, not str"),
        ({"QuestionId": None}, 'Data[0]: "QuestionId" is None: give an id'),
    ):
        data = {"Data": [record("tc_1", ["Italy.txt"]) | change]}
        path = write_json(tmp_path / "a.json", data)
        fails(tmp_path, "triviaqa", [path], f"{path}, {said}", evidence=evidence)
    fails(tmp_path, "triviaqa", [path], "none: give the folder with", evidence=tmp_path / "none")
    fails(tmp_path, "triviaqa", [path], "triviaqa needs --evidence")
    file = evidence / "wikipedia" / "Italy.txt"
    file.write_bytes(b"ok\n\xff")
    path = write_json(tmp_path / "a.json", {"Data": [record("tc_1", ["Italy.txt"])]})
    fails(tmp_path, "triviaqa", [path], f"{file}, line 2: not UTF-8", evidence=evidence)
