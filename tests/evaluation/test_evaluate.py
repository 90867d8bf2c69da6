"""The whole evaluation on a tiny model: what is asked, what is read, what the report holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.protocol import memory_answer_pieces, prompt_pieces
from data_pipeline.schema import Document, Query
from data_pipeline.sources.base import DrawnBank
from msa_train.evaluation import niah, qa
from msa_train.evaluation.asking import LIMITS, Asker
from msa_train.evaluation.evaluate import evaluate
from msa_train.evaluation.memories import EncodedSet
from msa_train.evaluation.niah import needle_bank, needle_tasks, whole_groups
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.model_runner import prefill_pieces


@pytest.fixture(scope="module")
def needles(config, tokenizer):
    return needle_bank(config.evaluation, config.data, tokenizer)


@pytest.fixture(scope="module")
def memory(model, tokenizer, needles):
    return EncodedSet.encode(model, tokenizer, needles.documents)


@pytest.fixture
def asker(model, tokenizer):
    return Asker(model, tokenizer, 4)


@pytest.fixture
def pydocs():
    words = ["parse", "join", "split", "encode", "decode", "open", "close", "read", "write", "seek"]
    documents = tuple(Document(i, f"lib.{word}()\nHow to {word}.") for i, word in enumerate(words))
    queries = [Query(f"How do I {w}?", (f"lib.{w}",), (i,)) for i, w in enumerate(words)]
    return DrawnBank(documents, tuple(queries))


def test_every_document_is_a_needle_and_the_set_is_long_enough(config, needles, memory):
    assert all("One of the special magic words for" in d.text for d in needles.documents)
    assert max(config.evaluation.memory_tokens) <= memory.tokens.sum()


def test_tasks_ask_about_the_smallest_bank(config, needles, memory):
    settings = replace(config.evaluation, questions=3)
    for task in needle_tasks(needles, memory, settings):
        assert len(task.queries) == 3
        assert {len(query.positives) for query in task.queries} == (
            {1} if task.name == "single" else {4}
        )
        for group in task.groups:
            held = {memory.numbers[place] for place in group.banks[2048]}
            assert all(held.issuperset(query.positives) for query in group.queries)
            assert memory.tokens[group.banks[2048]].sum() >= 2048


def test_a_part_of_the_set_is_the_memory_of_those_documents_alone(
    model, tokenizer, memory, needles
):
    places = np.array([1, 4, 5])
    alone = EncodedSet.encode(model, tokenizer, [needles.documents[place] for place in places])
    question = needles.queries[0].question
    chosen = [
        MemoryEngine(model, tokenizer, view, 4).route([question])[0]
        for view in (memory.view(places), memory.part(places).view(), alone.view())
    ]
    assert [number for number, _ in chosen[0].voted] == [number for number, _ in chosen[2].voted]
    assert [number for number, _ in chosen[1].voted] == [number for number, _ in chosen[2].voted]
    assert {number for number, _ in chosen[0].voted} == {memory.numbers[place] for place in places}


def test_controls_change_what_is_read(model, memory, needles):
    """Nothing is read without documents; a misrouted memory leads elsewhere, equally sharply."""
    query = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    cu = torch.tensor([0, 3])
    layer = model.config.router_layers[0]
    straight, _, _ = memory.view().search(layer, query, cu)
    astray, _, _ = memory.misrouted(0).view().search(layer, query, cu)
    nothing, k, _ = memory.nothing().search(layer, query, cu)
    assert set(straight.documents[0].tolist()) != set(astray.documents[0].tolist())
    assert straight.values[0, 0] == astray.values[0, 0]
    assert nothing.documents.numel() == len(k) == 0


def test_controls_change_what_is_answered(model, tokenizer, memory, needles):
    questions = [query.question for query in needles.queries[:4]]
    views = (memory.view(), memory.misrouted(0).view(), memory.nothing())
    read = []
    for view in views:
        contexts = [[*prompt_pieces(q), *memory_answer_pieces(q)] for q in questions]
        read.append(prefill_pieces(model, tokenizer, view, contexts).last)
    assert not torch.allclose(read[0], read[1], atol=1e-6)
    assert not torch.allclose(read[0], read[2], atol=1e-6)


def test_a_perfect_writer_gets_everything_right(oracle, asker, needles, memory, tokenizer):
    queries = needles.queries[:6]
    oracle(queries, tokenizer)
    view = memory.view()
    texts, alone = asker.with_texts(view, queries), asker.from_memory(view, queries)
    voted = asker.with_voted_texts(view, queries)
    for name in ("ids_precision", "ids_recall", "answer_text", "answer_text_f1"):
        assert texts[name].tolist() == [1] * 6, name
    assert alone["answer_memory"].tolist() == [1] * 6
    assert voted["answer_voted_text"].tolist() == [1] * 6


def test_voted_texts_are_those_of_the_router(oracle, asker, needles, memory, tokenizer):
    queries = needles.queries[:3]
    oracle(queries, tokenizer)
    view = memory.view()
    voted = asker._engine(view).route([query.question for query in queries])
    for answer, chosen in zip(asker._ask(view, queries, "router"), voted, strict=True):
        best = [number for number, _ in chosen.voted[: LIMITS.documents]]
        assert sorted(answer.rounds[0].evidence) == sorted(best)


def test_ids_of_no_document_cost_precision(oracle, asker, needles, memory, tokenizer):
    query = needles.queries[0]
    stranger = max(memory.numbers) + 1
    oracle([replace(query, positives=(*query.positives, stranger))], tokenizer)
    columns = asker.with_texts(memory.view(), [query])
    n = len(query.positives)
    assert columns["ids_precision"].tolist() == [n / (n + 1)]
    assert columns["ids_recall"].tolist() == [1]


def test_whole_groups_are_asked():
    groups = [niah.Group(tuple(range(n)), {}) for n in (5, 1, 5, 4)]
    assert [len(group.queries) for group in whole_groups(groups, 4)] == [4]
    assert [group.queries for group in whole_groups(groups, 8)] == [tuple(range(5)), (0, 1, 2)]
    assert sum(len(group.queries) for group in whole_groups(groups, 14)) == 14
    assert whole_groups(groups, 99) == groups
    uneven = [niah.Group(tuple(range(n)), {}) for n in (4, 1, 1, 9)]
    for count in range(1, 16):
        chosen = whole_groups(uneven, count)
        assert all(group.queries for group in chosen)
        assert sum(len(group.queries) for group in chosen) == count


@pytest.mark.parametrize("workers", [1, 2])
def test_the_report(workers, model, tokenizer, config, pydocs, monkeypatch, tmp_path):
    monkeypatch.setattr(qa, "pydocs_bank", lambda *_: pydocs)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/lm": 2.0}\n')
    report = evaluate(
        model,
        tokenizer,
        replace(
            config,
            output=str(tmp_path),
            evaluation=replace(config.evaluation, workers=workers),
        ),
        tmp_path,
    )
    assert json.loads((tmp_path / "report.json").read_text()) == report
    for task in ("single", "multi_value"):
        assert list(report["niah"][task]) == ["2048", "8192"]
        for length, section in report["niah"][task].items():
            assert {"recall@16", "answer_memory", "answer_text", "bm25_recall@16"} <= set(section)
            assert section["memory_tokens"] >= int(length)
            assert section["n"]["recall@16"] == 4 and section["n"]["answer_text"] == 3
            assert "recall@1" in section["layers"]["1"]
        assert report["niah"][task]["2048"]["bm25_recall@16"] == 1
        assert set(report["niah_controls"][task]) == {"no_memory", "random_router"}
    assert {f"{p}recall@{k}" for p in ("", "bm25_") for k in (1, 5, 16)} <= set(report["pydocs"])
    assert report["pydocs"]["bm25_recall@1"] == 1
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"memory.png", "pydocs.png", "training.png"}
