"""Texts chosen by the router and BM25 together, beside loops over all documents."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.bm25 import BM25
from data_pipeline.protocol import prompt_pieces
from data_pipeline.schema import Document
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits, Request
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.engine.scheduler import Scheduler
from tests.memory.building import encode_in_memory
from tests.memory.engine.test_scheduler import run
from tests.memory.tiny import tiny_model, tiny_tokenizer

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()
WORDS = ("harbour", "code", "lighthouse", "keeper", "crane", "water", "rain", "sleep", "said")
QUESTIONS = ["What said the keeper of the harbour?", "Where is Zanzibar?", "Who, of the?", "Rain?"]
SHORT = InterleaveLimits(rounds=1, retrieval_characters=4, answer_tokens=2)
NEEDLE = 107


@pytest.fixture(scope="module")
def view():
    """150 documents, so that the router's deviation is that of a sample; number = 100 + place."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(3, 30))) for _ in range(150)]
    texts[NEEDLE - 100] = "Zanzibar " + texts[NEEDLE - 100]
    documents = [Document(100 + place, text) for place, text in enumerate(texts)]
    found = encode_in_memory(MODEL, TOKENIZER, documents)
    return replace(found, words=BM25.of(texts))


def asked(view, question, mode="router"):
    return MemoryEngine(MODEL, TOKENIZER, view).ask([question], mode, SHORT)[0]


def z_scores(values, those):
    deviation = statistics.pstdev(those)
    return [(x - statistics.fmean(those)) / deviation if deviation else 0.0 for x in values]


def by_hand(view, question, places):
    """[(number, both, vote, bm25)] from the scores of all documents at `places`."""
    prefill = prefill_pieces(MODEL, TOKENIZER, view, [prompt_pieces(question)])
    layers = [
        view.searcher.score(layer, x.routing.query, x.routing.query_cu, torch.tensor([places]))[0]
        for layer, x in prefill.selected.items()
    ]
    votes = torch.stack(layers).mean(0).tolist()
    texts = [view.documents[100 + place].text for place in places]
    words = next(BM25.of(texts).scores(np.arange(len(places)), [question])).tolist()
    best = {row for x in layers for row in x.argsort(descending=True)[:3].tolist()}
    ranked = sorted(range(len(places)), key=lambda row: -words[row])[:3]
    rows = sorted(best.union(row for row in ranked if words[row] > 0))
    taken = min(len(places), 128)
    sampled = [votes[i * len(places) // taken] for i in range(taken)]
    both = [
        sum(pair)
        for pair in zip(
            z_scores([votes[row] for row in rows], sampled),
            z_scores([words[row] for row in rows], words),
            strict=True,
        )
    ]
    order = sorted(range(len(rows)), key=lambda i: -both[i])
    return [(100 + places[rows[i]], both[i], votes[rows[i]], words[rows[i]]) for i in order]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("step", [1, 2])
def test_the_ranking_is_that_of_loops_over_all_documents(view, question, step):
    """Of the whole view, and of one restricted to every second document."""
    places = list(range(0, 150, step))
    allowed = torch.zeros(150, dtype=torch.bool)
    allowed[places] = True
    answer = asked(view if step == 1 else view.restricted(allowed), question)
    first, last = answer.rounds
    expected = by_hand(view.restricted(allowed), question, places)
    assert first.chosen.ranking == [number for number, *_ in expected]
    for found, by_loops in zip(first.chosen.fused, expected, strict=True):
        assert tuple(found) == pytest.approx(by_loops, abs=1e-4)
    assert first.evidence == tuple(sorted(first.chosen.ranking[:4]))
    assert last.chosen.fused is None, "the answer's own routing appends nothing"
    assert {number for number, _ in first.chosen.voted} <= set(first.chosen.ranking)


def test_what_words_alone_find_is_read(view):
    question = QUESTIONS[1]
    without = asked(replace(view, words=None), question)
    (first, *_) = without.rounds
    assert NEEDLE not in first.chosen.ranking and first.chosen.fused is None
    found = asked(view, question)
    assert found.rounds[0].chosen.ranking[0] == NEEDLE in found.evidence
    assert NEEDLE not in [number for number, _ in found.rounds[0].chosen.voted]
    assert found.rounds[0].chosen.voted == first.chosen.voted, "the vote stays what it is"
    json = found.to_json()["rounds"][0]["chosen"]["fused"][0]
    assert json[0] == NEEDLE and json[3] > 0
    others = view.restricted(view.numbers != NEEDLE)
    assert NEEDLE not in asked(others, question).rounds[0].chosen.ranking


def test_others_of_the_same_view_are_left_as_they_are(view):
    """Prefilled together, only those whose texts the router chooses are ranked with BM25."""
    modes = ("router", "memory", "generate", "router")
    requests = [
        Request(question, view, mode, SHORT)
        for question, mode in zip(QUESTIONS, modes, strict=True)
    ]
    events = run(Scheduler(MODEL, TOKENIZER, slots=8, slot_tokens=2000), requests)
    for ticket, mode in enumerate(modes):
        rounds = events[ticket][-1].answer.rounds
        alone = asked(view, QUESTIONS[ticket], mode).rounds
        assert [each.chosen.ranking for each in rounds] == [each.chosen.ranking for each in alone]
        fused = [each.chosen.fused is not None for each in rounds]
        assert fused == [mode == "router", *[False] * (len(rounds) - 1)]


def test_an_empty_view_has_nothing_to_rank(view):
    nothing = view.restricted(torch.zeros(150, dtype=torch.bool))
    answer = asked(nothing, QUESTIONS[1])
    assert answer.rounds[0].chosen.fused == [] and answer.evidence == ()
