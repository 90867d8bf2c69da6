"""Losses, tokens and recall of a step."""

import pytest
import torch

from msa_train.model.losses import Losses
from msa_train.model.router import Routing
from msa_train.training import metrics


class Batch:
    routed_contexts = torch.tensor([0, 2])
    positives = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    doc_tokens, tokens = torch.zeros(30), torch.zeros(11)


def test_two_micro_batches_of_a_step(monkeypatch):
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda *_, **__: None)
    documents = torch.tensor([[0, 1], [0, 1], [2, -1]])
    none = torch.zeros(0)
    routing = Routing(none, none, documents, documents.float(), none, none, None)
    measured = metrics.StepMetrics((3,), None, torch.device("cpu"), labels=8, contexts=4)
    for lm, router in ((4.0, 2.0), (12.0, 6.0)):
        measured.add(Batch, Losses(torch.tensor(lm), torch.tensor(router), {3: routing}))
    assert measured.result() == {
        "loss/lm": 2.0,
        "loss/router": 2.0,
        "memory_tokens": 60,
        "active_tokens": 22,
        "router/layer_3_recall@1": pytest.approx(0.5),  # the first found one, the last none
        "router/layer_3_recall@k": pytest.approx(0.25),
    }


def test_a_step_without_positives_has_no_recall_to_count(monkeypatch):
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda *_, **__: None)
    measured = metrics.StepMetrics((3,), None, torch.device("cpu"), labels=0, contexts=0)
    assert measured.result()["router/layer_3_recall@1"] == 0


def test_recall_is_summed_over_the_contexts_that_have_positives():
    none = torch.zeros(0)
    documents = torch.tensor([[2, 1], [0, 1], [1, -1]])
    routing = Routing(none, none, documents, documents.float(), none, none, None)
    losses = Losses(torch.tensor(0.0), torch.tensor(0.0), {3: routing})
    # hits at 1; recall at K: one of two positives in the first, the only one in the last; contexts
    assert metrics.recall_sums(Batch, losses, (3,)).tolist() == [2, 1.5, 2]
    assert metrics.recall_sums(Batch, losses, ()).tolist() == [2]
