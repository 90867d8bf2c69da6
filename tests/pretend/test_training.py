"""A training step on a GPU: its numbers are the CPU's, and the host rarely waits for the device."""

import pytest
import torch

from msa_train.config import TrainingConfig
from msa_train.model import megatron as megatron_module
from msa_train.model.batch import PackedDocuments
from msa_train.model.transfer import moved
from msa_train.training.engine import _optimizer
from msa_train.training.gradient_cache import GradientCache
from msa_train.training.metrics import StepMetrics
from tests.batches import CONTEXTS, OWN_ROUTER, RAGGED, random_batch, tiny_config
from tests.pretend.cuda import counting, on_device, pretended_cuda

pytestmark = pytest.mark.filterwarnings("ignore")

# Megatron's cross entropy masks twice; Liger's, which a GPU has, reads one number.
LOSS = 2


class Alone:
    """An engine of one rank, without an optimizer."""

    keeps_graphs = True

    def __init__(self, module):
        self.module, self.passes = module, 0
        self.model = module

    def __call__(self, *given):
        self.passes += not isinstance(given[0], PackedDocuments)
        return self.module(*given)

    def backward(self, loss, scaled=False):
        loss.backward()

    def max_over_ranks(self, count):
        return count


@pytest.fixture
def cuda():
    with torch.autograd.set_multithreading_enabled(False), pretended_cuda() as device:
        yield device


def step(module, batch, group_tokens):
    losses = GradientCache(Alone(module), group_tokens).backward(
        batch, lambda losses: 0.7 * losses.lm + 0.3 * losses.router
    )
    return losses, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("router", "recompute", "group_tokens", "queue", "waits"),
    [
        ({}, "none", None, 0, 2),
        (OWN_ROUTER, "none", None, 0, 2),
        ({}, "layer", None, 0, 4),
        ({}, "attention", None, 0, 4),
        ({}, "none", 20, 0, 2),
        ({}, "none", None, 64, 2),
    ],
    ids=["plain", "pooled query", "recompute", "attention", "gradient cache", "queue"],
)
def test_a_step_waits_once_for_each_routing(
    megatron, cuda, router, recompute, group_tokens, queue, waits
):
    """Both configurations have two router layers: each waits for how many chunks it selected."""
    config = tiny_config(**router)
    batch = random_batch(RAGGED, CONTEXTS, config)
    plain, module = (megatron(config, recompute=recompute) for _ in range(2))
    plain.queue.limit = module.queue.limit = queue
    on_device(module)
    for _ in range(2 if queue else 1):
        wanted, gradients = step(plain, batch, group_tokens)
        with counting() as counts:
            losses, found = step(module, batch.to(cuda), group_tokens)
            measured = StepMetrics(config.router_layers, None, cuda, 8, 4)
            measured.add(batch.to(cuda), losses)
        assert counts.syncs <= waits + LOSS, counts
    torch.testing.assert_close(losses.lm.cpu(), wanted.lm)
    torch.testing.assert_close(losses.router.cpu(), wanted.router)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name].cpu(), gradient, msg=name)


def test_a_batch_travels_in_one_block(cuda):
    batch = random_batch(RAGGED, CONTEXTS, tiny_config(), doc_labels=True)
    with counting() as counts:
        there = batch.to(cuda)
        assert there.label_count == batch.label_count
        assert there.to(cuda).on_host is batch
    assert (counts.copies, counts.syncs) == (1, 0), counts
    for name in ("doc_tokens", "is_query", "ctx_cu", "positives", "doc_labels"):
        assert torch.equal(getattr(there, name).cpu(), getattr(batch, name))
    empty = moved([torch.zeros(0, 3), torch.ones(1, dtype=torch.bool)], cuda)
    assert [tuple(x.shape) for x in empty] == [(0, 3), (1,)] and bool(empty[1])


def test_the_fused_product_is_given_whole_tensors(megatron, cuda, monkeypatch):
    """Of halves of one it would copy both, in every layer."""
    config, halves, product = tiny_config(), [], megatron_module.swiglu
    module = on_device(megatron(config))

    def swiglu(gate, up):
        halves.append((gate.is_contiguous(), up.is_contiguous()))
        return product(gate, up)

    monkeypatch.setattr(megatron_module, "swiglu", swiglu)
    module(random_batch(RAGGED, CONTEXTS, config).to(cuda))
    assert halves == [(True, True)] * config.layers


def test_the_optimizer_changes_a_group_of_weights_in_one_launch(megatron, cuda):
    module = on_device(megatron(tiny_config(**OWN_ROUTER)))
    optimizer = _optimizer(module, TrainingConfig(), reader_apart=True)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()  # makes its state
    with counting() as counts:
        optimizer.step()
    # Besides, the count of steps goes up.
    assert (counts.launches, counts.syncs, counts.copies) == (2 * len(optimizer.param_groups), 0, 0)
    assert "_fused_adamw_" in str(counts)
