"""The router loss against its formula, written out."""

import math

import pytest
import torch

from msa_train.model.config import RouterConfig
from msa_train.model.losses import router_loss_sum


def written_out(scores, positives, masked, temperature, decoupled):
    total = 0.0
    for row, (p, m) in enumerate(zip(positives.tolist(), masked.tolist(), strict=True)):
        chosen = [i for i, is_positive in enumerate(p) if is_positive]
        s = [v / temperature for v in scores[row].tolist()]
        each = []
        for i in chosen:
            rivals = [
                j for j in range(len(s))
                if not m[j] and s[j] > -math.inf and (j == i or not (decoupled and p[j]))
            ]  # fmt: skip
            each.append(math.log(sum(math.exp(s[j]) for j in rivals)) - s[i])
        total += sum(each) / len(each) if each else 0.0
    return total


@pytest.mark.parametrize("loss", ["infonce_decoupled", "infonce"])
def test_the_formula(loss):
    gen = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 6, generator=gen)
    scores[:, 5] = -math.inf  # another bank's document
    positives = torch.zeros(4, 6, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = positives[1, 3] = positives[3, :5] = True
    masked = torch.zeros_like(positives)
    masked[0, 2] = masked[1, 4] = True
    ours = router_loss_sum(scores, positives, masked, RouterConfig(loss=loss))
    expected = written_out(scores, positives, masked, 0.1, loss == "infonce_decoupled")
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_a_context_without_negatives_costs_nothing_and_has_a_finite_gradient():
    scores = torch.rand(1, 3, requires_grad=True)
    everything = torch.ones(1, 3, dtype=torch.bool)
    loss = router_loss_sum(scores, everything, ~everything, RouterConfig())
    loss.backward()
    assert float(loss) == 0.0
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("documents", [0, 3])
def test_no_positive_no_loss(documents):
    none = torch.zeros(2, documents, dtype=torch.bool)
    scores = torch.rand(2, documents, requires_grad=True)
    loss = router_loss_sum(scores, none, none, RouterConfig())
    loss.backward()
    assert float(loss) == 0.0


def test_documents_that_do_not_exist_get_no_gradient():
    scores = torch.tensor([[0.3, 0.1, -math.inf]], requires_grad=True)
    positives = torch.tensor([[True, False, False]])
    router_loss_sum(scores, positives, ~positives & False, RouterConfig()).backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 2] == 0
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]
