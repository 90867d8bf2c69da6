"""A dataset to learn reading from: clozes or given questions, beside what the router brings."""

import json
from dataclasses import replace

import pytest

from data_pipeline.dataset import Passage, Question, read_passages, read_questions, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.schema import Document
from data_pipeline.sources.base import place_of
from data_pipeline.sources.dataset_tables import shown_text
from msa_train.errors import ConfigError
from msa_train.interop.export import load_export
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.router.exports import start_router
from msa_train.router.reading import write_reading
from msa_train.router.settings import ReadingSettings, StartSettings
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_export

WORDS = ("harbour", "code", "lighthouse", "keeper", "crane", "water", "rain", "boat", "tide",
         "storm", "gull", "rope", "sail")  # fmt: skip
SETTINGS = ReadingSettings(questions=30, passages=3, held_out_share=0.3)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An export with a pooled router, and a dataset folder."""
    root = tmp_path_factory.mktemp("reading")
    passages = [
        Passage(f"p{n}", f"{WORDS[n % 13]} {n}", f"In {1900 + n} the {WORDS[n % 7]} of the "
                f"{WORDS[n % 11]} had {n + 3} {WORDS[n % 5]} in it all day.")
        for n in range(40)
    ]  # fmt: skip
    asked = [
        Question("a", "When was the rope?", ("1911",), ("p11",)),
        Question("b", "Which two?", ("rain",), ("p6", "p13"), any_of=True),
        Question("c", "Not answered", (), ("p1",)),
    ]
    write_dataset(root / "set", passages, [("train", question) for question in asked])
    start_router(
        tiny_export(root / "e", top_k=40),
        [str(root / "set")],
        root / "r",
        StartSettings(layers="0,2"),
    )
    return root


def written(folder):
    questions = {
        split: [q for _, q in read_questions(folder / f"questions.{split}.jsonl")]
        for split in ("train", "held_out")
        if (folder / f"questions.{split}.jsonl").exists()
    }
    return {p.id: p for p in read_passages(folder / "corpus.jsonl")}, questions


def test_clozes_stand_beside_what_the_router_brings(given, tmp_path):
    report = write_reading(given / "r", str(given / "set"), tmp_path / "out", "clozes", SETTINGS)
    passages, questions = written(tmp_path / "out")
    assert len(passages) == 40 and passages["p11"].title == "rope 11"
    assert {name: len(some) for name, some in questions.items()} == report["questions"]
    assert report["questions"]["train"] + report["questions"]["held_out"] == 30
    held_out = {id for q in questions["held_out"] for id in q.positives}
    assert held_out and not held_out & {id for q in questions["train"] for id in q.positives}
    loaded = load_export(given / "r")
    documents = list(map(_shown, passages.values(), range(40)))
    view = encode_in_memory(loaded.model, loaded.tokenizer, documents)
    engine = MemoryEngine(loaded.model, loaded.tokenizer, view)
    for question in (*questions["train"], *questions["held_out"]):
        (answer,) = question.answers
        assert answer in passages[question.positives[0]].text
        voted = [f"p{number}" for number, _ in engine.route([question.question])[0].voted]
        wrong = [
            id for id in voted
            if id != question.positives[0]
            and not (len(answer) > 3 and answer.lower() in _text(passages[id]))
        ]  # fmt: skip
        assert list(question.negatives) == wrong[:3]


def _text(passage):
    return shown_text(passage.title, passage.text).lower()


def _shown(passage, number):
    return Document(number, shown_text(passage.title, passage.text))


def test_documents_of_one_id_are_told_apart(given, tmp_path):
    """As the parts of a long text have it in a file of `msa memory texts`."""
    rows = [{"id": "same", "text": f"In {1900 + n} the keeper had {n + 3} boats on the water."}
            for n in range(9)]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_reading(given / "r", str(tmp_path / "c.jsonl"), tmp_path / "out", "clozes", SETTINGS)
    passages, questions = written(tmp_path / "out")
    assert set(passages) == {"same", *(f"same#{n}" for n in range(2, 10))}
    for each in questions["train"]:
        assert each.answers[0] in passages[each.positives[0]].text


def test_given_questions_keep_their_answers(given, tmp_path):
    settings = replace(SETTINGS, held_out_share=0.0)
    report = write_reading(given / "r", str(given / "set"), tmp_path / "out", "train", settings)
    _, questions = written(tmp_path / "out")
    assert report["questions"] == {"train": 2, "held_out": 0}, "one has no answer"
    found = {q.question: q for q in questions["train"]}
    assert found["When was the rope?"].answers == ("1911",)
    assert found["Which two?"].any_of and set(found["Which two?"].positives) == {"p6", "p13"}
    for question in found.values():
        assert len(question.negatives) == 3 and not {*question.negatives} & {*question.positives}


def test_what_cannot_be_read_from_is_refused(given, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    with pytest.raises(DataError, match="no questions of split clozes"):
        write_reading(given / "r", str(tmp_path / "c.jsonl"), tmp_path / "o", "clozes", SETTINGS)
    with pytest.raises(ConfigError, match="query_reduce"):
        write_reading(given / "e", str(given / "set"), tmp_path / "o", "clozes", SETTINGS)
    with pytest.raises(DataError, match="exists already"):
        write_reading(given / "r", str(given / "set"), given / "set", "clozes", SETTINGS)
    assert not (tmp_path / "o").exists()


def test_held_out_questions_are_no_matter_of_another_held_out_share(given, tmp_path):
    """Of a corpus from which documents were kept out by the same kind of draw, as pydocs' are."""
    far = [f"d{n}" for n in range(400) if place_of(f"d{n}") > 0.5][:40]
    rows = [f"In {1900 + n} the {WORDS[n % 7]} had {n} doors in it all day." for n in range(40)]
    corpus = tmp_path / "c.jsonl"
    lines = [json.dumps({"id": id, "text": text}) for id, text in zip(far, rows, strict=True)]
    corpus.write_text("\n".join(lines))
    counts = write_reading(given / "r", str(corpus), tmp_path / "out", "clozes", SETTINGS)
    assert all(counts["questions"].values())
