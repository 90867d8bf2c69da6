"""The gradient cache gives the plain step's gradients, whatever the groups."""

import pytest
import torch

from msa_train.model.batch import PackedDocuments
from msa_train.training.gradient_cache import GradientCache
from tests.batches import OWN_ROUTER, random_batch, tiny_config

BANKS = [[4, 9, 1, 13, 6, 8], [7], [5, 5]]
CONTEXTS = [(0, 9), (1, 6), (0, 4), (2, 11), (0, 1)]


class Alone:
    """An engine of one rank that counts; `rounds`: what the busiest of all ranks needs."""

    keeps_graphs = True

    def __init__(self, module, rounds=0):
        self.module, self.rounds, self.largest, self.backwards = module, rounds, 0, 0
        self.model = module

    def __call__(self, *args):
        if isinstance(args[0], PackedDocuments):
            self.largest = max(self.largest, len(args[0].tokens))
        return self.module(*args)

    def backward(self, loss, scaled=False):
        self.backwards += 1
        loss.backward()

    def max_over_ranks(self, count):
        return max(count, self.rounds)


def gradients(module, batch, group_tokens, rounds=0):
    module.zero_grad()
    engine = Alone(module, rounds)
    losses = GradientCache(engine, group_tokens).backward(
        batch, lambda losses: 0.7 * losses.lm + 0.3 * losses.router
    )
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return engine, losses, found


@pytest.mark.parametrize(
    "settings",
    [{}, {"decouple": False}, {"similarity": "dot"}, OWN_ROUTER],
    ids=["", "coupled", "dot", "own"],
)
@pytest.mark.parametrize("gate", ["none", "threshold"])
@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize(("group_tokens", "rounds"), [(1, 0), (13, 0), (21, 7), (1000, 3)])
def test_gradients_are_those_of_the_plain_step(
    megatron, settings, gate, recompute, group_tokens, rounds
):
    config = tiny_config(gate, **settings)
    batch = random_batch(BANKS, CONTEXTS, config)
    module = megatron(config, recompute=recompute).double()
    _, plain, expected = gradients(module, batch, None)
    engine, cached, found = gradients(module, batch, group_tokens, rounds)
    assert engine.backwards > 2
    torch.testing.assert_close(cached.lm, plain.lm, rtol=1e-12, atol=0)
    torch.testing.assert_close(cached.router, plain.router, rtol=1e-12, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_no_group_is_larger_than_asked(megatron):
    config = tiny_config()
    batch = random_batch(BANKS, CONTEXTS, config)
    engine, *_ = gradients(megatron(config), batch, 14)
    assert engine.largest == 14
    engine, *_ = gradients(megatron(config), batch, 2)
    assert engine.largest == 13  # a longer document stays whole


def test_evaluation_takes_no_larger_groups(megatron):
    """Or it would run out of memory where training does not."""
    config = tiny_config()
    batch, engine = random_batch(BANKS, CONTEXTS, config), Alone(megatron(config).double())
    plain = GradientCache(engine, None).losses(batch)
    assert engine.largest == 0, "documents and contexts in one pass"
    losses = GradientCache(engine, 14).losses(batch)
    assert engine.largest == 14
    torch.testing.assert_close(losses.lm, plain.lm, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.router, plain.router, rtol=1e-12, atol=0)


def test_groups_are_all_documents_in_order():
    documents = PackedDocuments(torch.arange(20), torch.tensor([0, 3, 4, 11, 13, 20]))
    groups = documents.groups(7)
    assert [group.cu.tolist() for group in groups] == [[0, 3, 4], [0, 7], [0, 2], [0, 7]]
    assert torch.equal(torch.cat([group.tokens for group in groups]), documents.tokens)
    assert [len(group.tokens) for group in documents.groups(100)] == [20]
