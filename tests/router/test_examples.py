"""What a router is fitted on: documents in their order, known and self-made questions."""

import json
from itertools import combinations

import pytest

from data_pipeline.dataset import Passage, Question, write_dataset
from data_pipeline.errors import DataError
from data_pipeline.sources import pydocs
from data_pipeline.sources.stdlib import Docstring
from data_pipeline.splitting import DOCUMENT_TOKENS
from msa_train.router.examples import SELF_MADE, read_examples
from tests.memory.tiny import tiny_tokenizer

PASSAGES = [
    Passage("a", "Harbour", "The code of the harbour is 4711. Boats come and go all day long."),
    Passage("b", "Cranes", "Cranes sleep standing on one leg in the water."),
    Passage("c", "Harbour", "x"),
    Passage("d", "", "No title here, but a sentence of some words."),
]
QUESTIONS = [
    ("train", Question("1", "Which code?", (), ("a", "c"))),
    ("train", Question("2", "Who sleeps?", (), ("b",))),
    ("dev", Question("3", "Where?", (), ("zz",))),
]


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "set", PASSAGES, QUESTIONS)
    return str(tmp_path / "set")


def test_labelled_questions_point_at_places(dataset):
    found = read_examples(dataset, tiny_tokenizer(), "train")
    assert [d.text.partition("\n")[0] for d in found.documents[:3]] == [
        "Harbour", "Cranes", "Harbour",
    ]  # fmt: skip
    assert [d.number for d in found.documents] == [0, 1, 2, 3]
    assert [(p.question, p.documents) for p in found.pairs] == [
        ("Which code?", (0, 2)), ("Who sleeps?", (1,)),
    ]  # fmt: skip


def test_self_made_questions_are_titles_disturbed_sentences_and_clozes(dataset):
    found = read_examples(dataset, tiny_tokenizer(), SELF_MADE)
    asked = {pair.question: pair.documents for pair in found.pairs}
    assert asked.pop("Harbour") == (0, 2) and asked.pop("Cranes") == (1,)
    worded = {q: places for q, places in asked.items() if "___" in q or q.endswith("?")}
    assert worded and all(len(places) == 1 for places in worded.values())
    disturbed = [pair for pair in found.pairs if pair.question in asked.keys() - worded.keys()]
    assert [pair.documents for pair in disturbed] == [(0,), (1,), (3,)]
    for pair in disturbed:
        text = found.documents[pair.documents[0]].text
        assert pair.question not in text and set(pair.question.split()) <= set(text.split())
    assert read_examples(dataset, tiny_tokenizer(), SELF_MADE) == found
    assert read_examples(dataset, tiny_tokenizer(), SELF_MADE, seed=1) != found


def test_nothing_is_learned_of_documentation_that_is_held_out(monkeypatch):
    kinds = ("harbour", "lighthouse", "crane", "boat", "keeper", "sail", "rope")
    items = tuple(
        Docstring(f"m.f{n}", "m", "function", "(x)", ("x",),
                  f"Return the {a} of the {b}.\n\nIt asks the {a}{b} and its {b}{a} for water now.")
        for n, (a, b) in enumerate(combinations(kinds, 2))
    )  # fmt: skip
    monkeypatch.setattr(pydocs, "docstrings", lambda: items)
    made = {s: read_examples("pydocs", tiny_tokenizer(), s) for s in (SELF_MADE, "held_out")}
    about = {s: {p for pair in e.pairs for p in pair.documents} for s, e in made.items()}
    assert about[SELF_MADE] and about["held_out"] and not about[SELF_MADE] & about["held_out"]
    assert len(made["held_out"].documents) == len(items)
    asked = made["held_out"].pairs[0]
    assert made["held_out"].documents[asked.documents[0]].title not in asked.question
    with pytest.raises(DataError, match="pydocs has no split dev: give train, held_out"):
        read_examples("pydocs", tiny_tokenizer(), "dev")


def test_a_corpus_file_is_read_as_it_stands_and_long_documents_are_cut(tmp_path):
    path = tmp_path / "c.jsonl"
    long = "Rain falls on the harbour. " * 400
    rows = [{"text": "short", "title": "T"}, {"text": long}, {"text": "last"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(str(path), tiny_tokenizer())
    assert [d.text for d in found.documents][::2] == ["short", "last"]
    cut = found.documents[1].text
    assert long.startswith(cut) and len(tiny_tokenizer().encode_text(cut)) <= DOCUMENT_TOKENS
    few = read_examples(str(path), tiny_tokenizer(), limit=2)
    assert len(few.documents) == 2 and [d.number for d in few.documents] == [0, 1]


def test_what_is_not_there_is_said(dataset, tmp_path):
    with pytest.raises(DataError, match=r"questions\.test\.jsonl"):
        read_examples(dataset, tiny_tokenizer(), "test")
    with pytest.raises(DataError, match=r"none of \['zz'\]"):
        read_examples(dataset, tiny_tokenizer(), "dev")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="has no questions"):
        read_examples(str(tmp_path / "c.jsonl"), tiny_tokenizer(), "train")
    with pytest.raises(DataError, match="no such file"):
        read_examples(str(tmp_path / "nothing.jsonl"), tiny_tokenizer())
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="has no questions of split self-made"):
        read_examples(str(tmp_path / "short.jsonl"), tiny_tokenizer(), SELF_MADE)
    (tmp_path / "space.jsonl").write_text(json.dumps({"text": " \n" * 4000}) + "\n")
    with pytest.raises(DataError, match=r"space\.jsonl, line 1: \"text\" is blank"):
        read_examples(str(tmp_path / "space.jsonl"), tiny_tokenizer())
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no documents"):
        read_examples(str(tmp_path / "empty.jsonl"), tiny_tokenizer())


def test_a_sentence_of_a_script_without_spaces_is_disturbed_too(tmp_path):
    text = "本作以三大故事为主轴，分别是以武田信玄等人为主的故事。"
    write_dataset(tmp_path / "zh", [Passage("z", "", text)], [])
    (pair,) = read_examples(str(tmp_path / "zh"), tiny_tokenizer(), SELF_MADE).pairs
    assert pair.question not in text and set(pair.question) <= set(text)
    assert len(pair.question) >= len(text) // 2
