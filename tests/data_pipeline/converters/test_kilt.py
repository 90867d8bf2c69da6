"""kilt: questions whose provenance names paragraphs of Wikipedia."""

import pytest

from data_pipeline.converters import convert
from data_pipeline.dataset import Question
from tests.data_pipeline.converters.files import fails, passages, questions, write_jsonl


def paragraph(page, start, end=None):
    source = {"wikipedia_id": page, "title": "Cats", "start_paragraph_id": start}
    return source if end is None else source | {"end_paragraph_id": end, "bleu_score": 1.0}


KILT = {
    "id": "5328", "input": "who purrs?", "meta": {},
    "output": [
        {"answer": "cats", "provenance": [paragraph("7", 1, 2)]},
        {"answer": "the cat"},
        {"provenance": [paragraph(9, 1)], "meta": {}},
    ],
}  # fmt: skip


@pytest.fixture
def knowledge(tmp_path):
    return write_jsonl(
        tmp_path / "knowledge.jsonl",
        {"_id": "7", "wikipedia_id": "7", "wikipedia_title": "Cats",
         "text": ["Cats\n", "Cats purr.\n", "They sleep."], "anchors": []},
        {"_id": "8", "wikipedia_id": "8", "wikipedia_title": "Dogs", "text": ["Dogs bark."]},
        {"wikipedia_id": 9, "wikipedia_title": "Pets", "text": ["Pets", "Like cats.", ""]},
    )  # fmt: skip


def test_kilt_takes_the_paragraphs_that_are_named(tmp_path, knowledge):
    page_only = {"id": "2", "input": "x", "output": [{"answer": "Cats", "provenance": [
        {"wikipedia_id": "7", "title": "Cats"}]}]}  # fmt: skip
    path = write_jsonl(tmp_path / "a.jsonl", KILT, page_only)
    converted = convert("kilt", [path], tmp_path / "out", ["dev"], knowledge=knowledge)
    assert (converted.passages, converted.questions) == (3, {"dev": 1})
    assert converted.left_out == {"questions without a passage that answers them": 1}
    assert passages(tmp_path / "out") == {
        "7:1": ("Cats", "Cats purr."),
        "7:2": ("Cats", "They sleep."),
        "9:1": ("Pets", "Like cats."),
    }
    assert questions(tmp_path / "out", "dev") == [
        Question("5328", "who purrs?", ("cats", "the cat"), ("7:1", "7:2", "9:1"))
    ]


def test_kilt_takes_all_of_its_source_when_asked(tmp_path, knowledge):
    path = write_jsonl(tmp_path / "a.jsonl", KILT)
    out = tmp_path / "out"
    assert convert("kilt", [path], out, knowledge=knowledge, all_passages=True).passages == 7
    assert list(passages(out)) == ["7:0", "7:1", "7:2", "8:0", "9:0", "9:1", "9:2"]


def test_broken_kilt(tmp_path, knowledge):
    for source, said in (
        (paragraph("7", 3), ": there is no passage '7:3' in the corpus"),
        (paragraph("5", 0), ": there is no passage '5:0' in the corpus"),
        (paragraph("7", 2, 1), ", output[0].provenance[0]: paragraphs 2 to 1: give a start of"),
        (paragraph("7", "1"), ", output[0].provenance[0]: \"start_paragraph_id\" is '1': give"),
        (paragraph(None, 1), ', output[0].provenance[0]: "wikipedia_id" is None: give an id'),
    ):
        record = {**KILT, "output": [{"answer": "x", "provenance": [source]}]}
        path = write_jsonl(tmp_path / "a.jsonl", KILT, record)
        fails(tmp_path, "kilt", [path], f"{path}, line 2{said}", strict=True, knowledge=knowledge)
    path = write_jsonl(tmp_path / "a.jsonl", KILT)
    write_jsonl(knowledge, {"wikipedia_id": "7", "wikipedia_title": "Cats", "text": "x"})
    fails(tmp_path, "kilt", [path], f"{knowledge}, line 1: \"text\" is 'x'", knowledge=knowledge)
    fails(tmp_path, "kilt", [path], "kilt needs --knowledge")


def test_a_question_about_a_paragraph_that_is_not_there_is_left_out(tmp_path, knowledge):
    record = {**KILT, "id": "2", "output": [{"provenance": [paragraph("7", 3)]}]}
    path = write_jsonl(tmp_path / "a.jsonl", KILT, record)
    converted = convert("kilt", [path], tmp_path / "out", knowledge=knowledge)
    assert converted.questions == {"train": 1}
    assert converted.left_out == {
        "questions that an empty or missing passage answers": 1,
        f"judgements of passages that are not in the corpus (the first: {path}, line 2: '7:3')": 1,
    }
