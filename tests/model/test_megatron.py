"""Training and serving compute the same: the Megatron module against the serving module."""

from dataclasses import replace

import pytest
import torch

from msa_train.model.batch import IGNORE
from msa_train.model.losses import router_loss_sum, token_loss_sum
from msa_train.model.weights import published_weights
from tests.batches import (
    CONTEXTS,
    OWN_ROUTER,
    RAGGED,
    VOTING_ROUTER,
    decoder_of,
    random_batch,
    tiny_config,
)


@pytest.mark.parametrize("gate", ["none", "threshold"])
@pytest.mark.parametrize("doc_labels", [False, True])
@pytest.mark.parametrize("router", [{}, OWN_ROUTER, VOTING_ROUTER], ids=["", "own", "voting"])
def test_megatron_and_serving_modules_agree(megatron, gate, doc_labels, router):
    config = tiny_config(gate, **router)
    batch = random_batch(RAGGED, CONTEXTS, config, doc_labels=doc_labels)
    ours, streams = megatron(config).hidden_states(batch)
    out = decoder_of(config)(batch)
    expected = out.hidden if not doc_labels else torch.cat([out.doc_hidden, out.hidden])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for layer in config.router_layers:
        assert torch.equal(streams.routings[layer].documents, out.routings[layer].documents)


@pytest.mark.parametrize(
    "settings",
    [{}, {"decouple": False}, {"similarity": "dot"}, OWN_ROUTER, VOTING_ROUTER,
     {"decouple": False, "query_reduce": "pooled"}],
)  # fmt: skip
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_losses_and_gradients_agree(megatron, settings, recompute):
    config = tiny_config(**settings)
    batch = random_batch(RAGGED, CONTEXTS, config)
    module = megatron(config, recompute=recompute)
    losses = module(batch)
    (losses.lm + losses.router).backward()
    model = decoder_of(config)
    out = model(batch)
    asked = batch.labels >= 0
    lm = token_loss_sum(model.logits(out.hidden[asked]), batch.labels[asked])
    per_layer = [
        router_loss_sum(
            out.routings[layer].document_scores, batch.positives, batch.masked, config.router
        )
        for layer in config.loss_layers
    ]
    router = sum(per_layer) / len(per_layer)
    torch.testing.assert_close(losses.lm, lm)
    torch.testing.assert_close(losses.router, router)
    (lm + router).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name, gradient in published_weights([gradients], config):
        torch.testing.assert_close(
            gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name
        )


def test_a_batch_without_labels_has_no_loss_and_no_gradient_of_it(megatron):
    config = tiny_config()
    batch = random_batch(RAGGED, CONTEXTS, config)
    module = megatron(config)
    losses = module(replace(batch, labels=torch.full_like(batch.labels, IGNORE)))
    losses.lm.backward()
    assert float(losses.lm.detach()) == 0.0
    for parameter in module.parameters():
        assert parameter.grad is None or not parameter.grad.any()
