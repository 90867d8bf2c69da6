"""A dataset folder: what is written is read back, and it appears whole or not at all."""

import gzip
import json

import pytest

from data_pipeline.dataset import (
    DatasetWriter,
    Passage,
    Question,
    find_file,
    found_first,
    passage_lines,
    read_passages,
    read_questions,
    write_dataset,
)
from data_pipeline.errors import DataError

PASSAGES = [Passage("a", "Cats", "Cats purr."), Passage("b", "", "Dogs\nbark.")]
QUESTIONS = [
    ("train", Question("1", "Who?", ("cats", "Katzen"), ("a",), (), ("b",))),
    ("train", Question("2", "Both?", (), ("a", "b"), (("b",), ("a",)))),
    ("dev", Question("3", "Either?", ("x",), ("a", "b"), any_of=True)),
]


def test_what_is_written_is_read_back(tmp_path):
    out = tmp_path / "new" / "out"
    counts = write_dataset(out, PASSAGES, QUESTIONS)
    assert counts == {"corpus.jsonl": 2, "questions.train.jsonl": 2, "questions.dev.jsonl": 1}
    assert sorted(path.name for path in out.iterdir()) == sorted(counts)
    assert list(read_passages(find_file(out, "corpus"))) == PASSAGES
    for split in ("train", "dev"):
        found = read_questions(find_file(out, f"questions.{split}"))
        assert [question for _, question in found] == [q for s, q in QUESTIONS if s == split]
    line = (out / "questions.dev.jsonl").read_text()
    assert json.loads(line).keys() == {"id", "question", "answers", "positives", "any_of"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path / "out") as writer:
        writer.passage(PASSAGES[0])
        writer.question(*QUESTIONS[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_needs_a_passage_and_a_name_of_its_own(tmp_path):
    with pytest.raises(DataError, match=r"nothing to write to .*out"):
        write_dataset(tmp_path / "out", [], QUESTIONS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out exists already"):
        write_dataset(tmp_path / "out", PASSAGES, [])
    assert list((tmp_path / "out").iterdir()) == []


def test_gzip_and_what_may_be_left_out(tmp_path):
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write('{"text": "one", "metadata": [1]}\n{"id": 7, "text": "two", "title": null}\n')
    path = find_file(tmp_path, "corpus")
    assert list(read_passages(path)) == [Passage("0", "", "one", [1]), Passage("7", "", "two")]
    named = [passage.id for passage in read_passages(path, lambda place: f"made-{place}")]
    assert named == ["made-0", "7"]
    assert [where for where, _ in passage_lines(path)] == [f"{path}, line {n}" for n in (1, 2)]
    with pytest.raises(DataError, match=r"questions.dev.jsonl \(or .jsonl.gz\) is missing"):
        find_file(tmp_path, "questions.dev")
    (tmp_path / "questions.dev.jsonl").write_text('{"question": "Who?"}\n')
    ((_, question),) = read_questions(find_file(tmp_path, "questions.dev"))
    assert question == Question("0", "Who?", (), ())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": " "}, "\"question\" is ' ': give a string with text"),
        ({"question": "x", "answers": "y"}, "\"answers\" is 'y': give a list of strings"),
        ({"question": "x", "positives": [1]}, '"positives" is \\[1\\]: give a list of strings'),
        ({"question": "x", "steps": "a"}, "\"steps\" is 'a': give a list of lists"),
        ({"question": "x", "steps": ["a"]}, "\"steps\" is 'a': give a list of strings"),
        ({"question": "x", "any_of": 1}, '"any_of" is 1: give true or false'),
        ({"id": {}, "question": "x"}, '"id" is {}: give an id'),
        ({"question": "x", "any_of": True, "steps": [["a"]]}, "no true with steps"),
    ],
)
def test_a_broken_question_is_named(tmp_path, line, said):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "good"}\n' + json.dumps(line) + "\n")
    questions = read_questions(path)
    next(questions)
    with pytest.raises(DataError, match=f"q.jsonl, line 2: .*{said}"):
        next(questions)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": 5}, '"text" is 5: give a string'),
        ({"id": {"a": 1}, "text": "x"}, r"\"id\" is {'a': 1}: give an id, a string or a whole"),
        ({"id": False, "text": "x"}, '"id" is False: give an id'),
        ({"id": "a", "text": "x", "title": ["t"]}, r"\"title\" is \['t'\]: give a string"),
        ({"text": "x", "metadata": float("nan")}, '"metadata" is no JSON'),
    ],
)
def test_a_broken_passage_is_named(tmp_path, line, said):
    (tmp_path / "c.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=f"c.jsonl, line 1: {said}"):
        next(read_passages(tmp_path / "c.jsonl"))


def test_metadata_is_written_where_there_is_some(tmp_path):
    some = [Passage("a", "", "x", {"page": 0}), Passage("b", "", "y")]
    write_dataset(tmp_path / "out", some, [])
    assert list(read_passages(tmp_path / "out" / "corpus.jsonl")) == some
    assert "null" not in (tmp_path / "out" / "corpus.jsonl").read_text()


def test_steps_keep_a_passage_where_it_is_found_first():
    assert found_first([["a", "a"], ["b", "a"], ["a"], ["c"]]) == (("a",), ("b",), ("c",))
