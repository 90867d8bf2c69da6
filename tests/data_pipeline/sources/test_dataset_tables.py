"""How a dataset is made ready: what is split, what is found, what is refused."""

import json
from dataclasses import replace

import pytest

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.sources.dataset_config import DatasetConfig, NegativesConfig
from data_pipeline.sources.dataset_tables import (
    PASSAGES,
    QUESTIONS,
    holds_answer,
    open_table,
    prepare,
)
from data_pipeline.splitting import document_length


def test_hard_negatives_by_bm25_hold_no_answer(folder, tokenizer, tmp_path):
    config = DatasetConfig(str(folder), negatives=NegativesConfig(bm25=4))
    tables = prepare(config, "train", 256, tokenizer, tmp_path)
    texts = open_table(tables / PASSAGES)["text"].to_pylist()
    for row in open_table(tables / QUESTIONS).to_pylist():
        assert len(row["negatives"]) == 4 and not set(row["negatives"]) & set(row["steps"][0])
        assert not any(holds_answer(texts[n], row["answers"]) for n in row["negatives"])


def test_long_passages_are_split_and_the_part_with_the_answer_is_right(tmp_path, tokenizer, rng):
    text = " ".join(f"Sentence number {i} says something about nothing." for i in range(40))
    long = Passage("long", "Long", f"{text} The treasure is under the palm tree. {text}")
    asked = [
        Question("there", "Where?", ("under the palm",), ("long",)),
        Question("nowhere", "Why?", ("because",), ("long",)),
    ]
    write_dataset(tmp_path / "long", [long], [("train", q) for q in asked])
    config = DatasetConfig(str(tmp_path / "long"), negatives=NegativesConfig(0, 0))
    tables = prepare(config, "train", 64, tokenizer, tmp_path / "prepared")
    parts = open_table(tables / PASSAGES).to_pylist()
    assert len(parts) > 5 and {part["title"] for part in parts} == {"Long"}
    assert max(document_length(tokenizer, f"Long\n{part['text']}") for part in parts) <= 64
    assert " ".join(part["text"] for part in parts) == long.text
    there, nowhere = open_table(tables / QUESTIONS).to_pylist()
    (step,) = there["steps"]
    assert all("under the palm" in parts[part]["text"] for part in step) and step
    assert nowhere["steps"] == [[0]], "the first part, when none holds an answer"


def test_tables_are_made_once_and_anew_when_anything_changes(folder, tokenizer, tmp_path):
    config = DatasetConfig(str(folder))
    first = prepare(config, "train", 256, tokenizer, tmp_path)
    made = (first / PASSAGES).stat().st_mtime_ns
    assert prepare(config, "train", 256, tokenizer, tmp_path) == first
    assert (first / PASSAGES).stat().st_mtime_ns == made
    others = [
        prepare(config, "train", 128, tokenizer, tmp_path),
        prepare(config, "dev", 256, tokenizer, tmp_path),
        prepare(replace(config, titles=False), "train", 256, tokenizer, tmp_path),
    ]
    assert len({first, *others}) == 4
    tables = [(folder / PASSAGES).read_bytes() for folder in (first, others[1])]
    assert tables[0] == tables[1] and (others[1] / QUESTIONS).exists()


def test_the_corpus_is_split_once_for_all_its_questions(folder, tokenizer, tmp_path, monkeypatch):
    config = DatasetConfig(str(folder))
    prepare(config, "train", 256, tokenizer, tmp_path)
    split = "data_pipeline.sources.dataset_tables._split"
    monkeypatch.setattr(split, lambda *_: pytest.fail("split again"))
    prepare(config, "dev", 256, tokenizer, tmp_path)
    prepare(config, None, 256, tokenizer, tmp_path)
    with pytest.raises(DataError, match="split is None"):
        replace(config, split=None)


ONE = '{"id": "a", "text": "x"}'


@pytest.mark.parametrize(
    ("lines", "asked", "words"),
    [
        pytest.param(ONE, {"positives": ["b"]}, "line 1: passage 'b'", id="unknown"),
        pytest.param(ONE, {"positives": []}, '"positives" is empty', id="no-positive"),
        pytest.param(ONE, {"question": " "}, 'line 1: "question"', id="no-question"),
        pytest.param(ONE, {"steps": [[]]}, '"steps" find', id="steps"),
        pytest.param(ONE, {"any_of": "yes"}, '"any_of" is', id="any-of"),
        pytest.param(ONE, {"any_of": True, "steps": [["a"]]}, "no true with steps", id="any-steps"),
        pytest.param(f"{ONE}\n{ONE}", {}, "'a' comes twice", id="twice"),
        pytest.param('{"id": "a"}', {}, r"corpus\.jsonl, line 1", id="no-text"),
        pytest.param('{"id": "a", "text": ""}', {}, "has no text", id="empty-text"),
        pytest.param("", {}, "holds no passage", id="nothing"),
    ],
)
def test_what_is_broken_is_named(tmp_path, tokenizer, lines, asked, words):
    (tmp_path / "corpus.jsonl").write_text(lines)
    question = {"question": "q", "positives": ["a"], **asked}
    (tmp_path / "questions.train.jsonl").write_text(json.dumps(question))
    with pytest.raises(DataError, match=words):
        prepare(DatasetConfig(str(tmp_path)), "train", 64, tokenizer, tmp_path / "prepared")
    assert not list((tmp_path / "prepared").iterdir()), "nothing half-made is left"


def test_answers_that_say_nothing_are_not_looked_for():
    assert holds_answer("The Tiber flows.", ["tiber"])
    assert not holds_answer("yes, 12 of them", ["yes", "12", ""])
    assert holds_answer("战国无双是光荣开发的", ["光荣"])


def test_a_title_alone_is_a_text_that_questions_can_find(tmp_path, tokenizer):
    passages = [
        Passage("t", "A title alone", ""),
        Passage("e", "", " "),
        Passage("x", "X", "Text."),
    ]
    asked = ("train", Question("q", "Which?", (), ("t",)))
    write_dataset(tmp_path / "set", passages, [asked])
    for titles in (True, False):
        config = DatasetConfig(str(tmp_path / "set"), titles=titles)
        tables = prepare(config, "train", 256, tokenizer, tmp_path / "prepared")
        first, _ = open_table(tables / PASSAGES).to_pylist()
        assert first == {"id": "t", "title": "", "text": "A title alone"}
        assert open_table(tables / QUESTIONS)["steps"].to_pylist() == [[[0]]]
