"""Fitting on cached means: what it learns, what it keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from msa_train.errors import ConfigError
from msa_train.model.weights import projection_names
from msa_train.router.fit import CachedExamples, Voter, fit, recalls
from msa_train.router.means import LayerMeans
from msa_train.router.settings import FitSettings
from msa_train.router.whitening import started
from tests.batches import tiny_config

LAYERS, WIDTH = (0, 2), 32
CONFIG = tiny_config("none", layers="0,2", reads="none", key_heads=2, head_dim=16,
                     query_reduce="pooled")  # fmt: skip


def drawn(documents=120, questions=200, seed=0):
    """A question is its document in a rotated space, under noise: only fitting can find it."""
    random = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random))
    cu = F.pad(torch.randint(1, 4, (documents,), generator=random).cumsum(0), (1, 0))
    positives = torch.randint(0, documents, (questions,), generator=random).tolist()
    keys, queries = {}, {}
    for layer in LAYERS:
        rows = torch.randn(int(cu[-1]), WIDTH, generator=random)
        noise = torch.randn(questions, WIDTH, generator=random)
        keys[layer] = rows
        queries[layer] = rows[cu[positives]] @ turn + 0.3 * noise
    asked = LayerMeans(queries, torch.arange(questions + 1))
    return CachedExamples("c", LayerMeans(keys, cu), asked, tuple((p,) for p in positives))


def start_of(examples):
    return pairs_of(started(CONFIG, examples.documents.rows))


def pairs_of(weights):
    return {n: tuple(weights[name] for name in projection_names(n)) for n in LAYERS}


def test_votes_are_mean_scores_of_the_layers():
    examples = drawn(documents=60, questions=3)
    weights = start_of(examples)
    found = Voter(CONFIG, weights, examples.documents)(examples.questions)
    cu = examples.documents.cu.tolist()
    for question in range(3):
        for document in range(60):
            scores = []
            for layer, (wq, wk) in weights.items():
                q = F.normalize((wq @ examples.questions.rows[layer][question]).view(2, 16), dim=1)
                cosines = [
                    (q * F.normalize((wk @ row).view(2, 16), dim=1)).sum(1).mean()
                    for row in examples.documents.rows[layer][cu[document] : cu[document + 1]]
                ]
                scores.append(max(cosines))
            expected = sum(scores) / len(scores)
            torch.testing.assert_close(found[question, document], expected, rtol=1e-4, atol=1e-5)


def test_recall_counts_questions_with_a_document_among_the_first():
    examples = drawn(documents=40, questions=30)
    weights = start_of(examples)
    order = Voter(CONFIG, weights, examples.documents)(examples.questions).argsort(
        dim=1, descending=True, stable=True
    )
    places = [row.tolist().index(p[0]) for row, p in zip(order, examples.positives, strict=True)]
    expected = [sum(place < k for place in places) / 30 for k in (1, 5, 16)]
    assert recalls(CONFIG, weights, examples) == pytest.approx(expected, abs=1e-4)


def test_fitting_finds_what_the_start_does_not_and_is_reproducible():
    examples, settings = drawn(), FitSettings(steps=120, lr=1e-2, documents=100, look_every=20)
    fitted = fit(CONFIG, start_of(examples), [examples], settings)
    before, after = fitted.looks[0][1]["c"], dict(fitted.looks)[fitted.best]["c"]
    assert before[2] < 0.5 < 0.9 < after[2]
    assert fitted.losses[-1] < fitted.losses[0]
    held_out_and_trained = recalls(CONFIG, pairs_of(fitted.weights), examples)
    assert held_out_and_trained[2] > 0.9
    again = fit(CONFIG, start_of(examples), [examples], settings)
    assert all(torch.equal(w, again.weights[name]) for name, w in fitted.weights.items())


def test_the_best_look_is_kept_and_patience_ends():
    examples = drawn()
    wild = FitSettings(steps=200, lr=0.9, look_every=5, patience=2)
    fitted = fit(CONFIG, start_of(examples), [examples], wild)
    looks = {step: sum(found["c"]) for step, found in fitted.looks}
    assert looks[fitted.best] == max(looks.values())
    assert len(fitted.losses) < 200
    assert fitted.best < fitted.looks[-1][0]


def test_what_cannot_be_fitted_is_refused():
    examples = drawn(questions=20)
    published = tiny_config("none", layers="0,2")
    with pytest.raises(ConfigError, match="query_reduce 'max'"):
        fit(published, {}, [examples], FitSettings())
    early = replace(CONFIG, router=replace(CONFIG.router, reads="0"))
    with pytest.raises(ConfigError, match=r"reads '0': what layer 0 reads changes"):
        fit(early, {}, [examples], FitSettings())
    with pytest.raises(ConfigError, match="c has 1 questions"):
        fit(CONFIG, start_of(examples), [examples.part([0])], FitSettings())
