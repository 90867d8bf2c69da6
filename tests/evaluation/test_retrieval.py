"""Methods that find documents, side by side: each ranks as it would alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.bm25 import BM25
from data_pipeline.dataset import Passage, Question, write_dataset
from msa_train.errors import ConfigError
from msa_train.evaluation.retrieval import compare_retrieval
from msa_train.interop.export import load_export
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.router.examples import read_examples
from msa_train.router.exports import start_router
from msa_train.router.settings import StartSettings
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_export

WORDS = ("harbour", "code", "lighthouse", "keeper", "crane", "water", "rain", "boat", "tide",
         "storm", "gull", "rope", "sail", "oar")  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, 8)) + f" {n}." for n in range(40)]
    passages = [Passage(str(n), "", text) for n, text in enumerate(texts)]
    questions = [
        ("dev", Question(str(n), " ".join(draw.permutation(text.split()[:4])), (), (str(n),)))
        for n, text in enumerate(texts)
    ]
    write_dataset(folder / "set", passages, questions)
    export = tiny_export(folder / "export")
    start_router(export, [str(folder / "set")], folder / "own", StartSettings(layers="0,2"))
    return folder / "own", str(folder / "set")


def recall(ranked, at):
    return sum(place in row[:at].tolist() for place, row in enumerate(ranked)) / len(ranked)


def test_word_search_and_the_router_rank_as_they_do_alone(given):
    export, data = given
    report = compare_retrieval([export], [data], "dev")["corpora"][data]
    assert (report["documents"], report["questions"]) == (40, 40)
    assert list(report["recall"]) == ["own", "own + BM25", "random router", "BM25"]
    loaded = load_export(export)
    examples = read_examples(data, loaded.tokenizer, "dev")
    asked = [pair.question for pair in examples.pairs]
    lexical = BM25.of(d.text for d in examples.documents).rank(np.arange(40), asked, 16)
    view = encode_in_memory(loaded.model, loaded.tokenizer, examples.documents)
    routed = MemoryEngine(loaded.model, loaded.tokenizer, view).route(asked)
    voted = [torch.tensor([number for number, _ in each.voted[:1]]) for each in routed]
    for at in (1, 5, 16):
        assert report["recall"]["BM25"][f"recall@{at}"] == pytest.approx(recall(lexical, at))
    assert report["recall"]["own"]["recall@1"] == pytest.approx(recall(voted, 1))
    low, high = report["recall"]["BM25"]["interval@5"]
    assert low <= report["recall"]["BM25"]["recall@5"] <= high


def test_the_hybrid_ranks_as_it_is_served(given):
    """What the engine appends texts by, question by question."""
    export, data = given
    report = compare_retrieval([export], [data], "dev")["corpora"][data]["recall"]
    loaded = load_export(export)
    examples = read_examples(data, loaded.tokenizer, "dev")
    view = encode_in_memory(loaded.model, loaded.tokenizer, examples.documents)
    view = replace(view, words=BM25.of(d.text for d in examples.documents))
    asked = [pair.question for pair in examples.pairs]
    engine = MemoryEngine(loaded.model, loaded.tokenizer, view)
    answers = engine.ask(asked, "router", InterleaveLimits(answer_tokens=1))
    ranked = [torch.tensor(each.rounds[0].chosen.ranking) for each in answers]
    assert max(map(len, ranked)) < 16, "what is no candidate is not found"
    for at in (1, 5, 16):
        assert report["own + BM25"][f"recall@{at}"] == pytest.approx(recall(ranked, at))


def test_layers_alone_are_routers_of_one_layer(given, tmp_path):
    export, data = given
    report = compare_retrieval([export], [data], "dev", per_layer=True)["corpora"][data]["recall"]
    assert list(report)[:4] == ["own", "own, layer 0", "own, layer 2", "own + BM25"]
    start_router(export, [data], tmp_path / "one", StartSettings(layers="2"))
    alone = compare_retrieval([tmp_path / "one"], [data], "dev")["corpora"][data]["recall"]
    assert alone["one"] == report["own, layer 2"] != report["own, layer 0"]


def test_what_would_report_something_else_is_refused(given, tmp_path):
    export, data = given
    with pytest.raises(ConfigError, match="stand twice"):
        compare_retrieval([export, export], [data], "dev")
    with pytest.raises(ConfigError, match="query_reduce 'max'"):
        compare_retrieval([tiny_export(tmp_path / "published")], [data], "dev")
