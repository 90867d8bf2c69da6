"""Training and serving compute the same: Megatron module, serving module, memory in a bank."""

import pytest
import torch
from msa_train.model.resident import ResidentMemory

from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import KVCache
from msa_train.model.losses import router_loss_sum, token_loss_sum
from msa_train.model.weights import initial_weight, published_weights, weight_shapes
from tests.batches import random_batch, tiny_config

RAGGED = [[4, 9, 1, 13, 6, 8], [7], [5, 5]]  # the second and third have fewer than top_k = 3
CONTEXTS = [(0, 9), (1, 6), (0, 4), (2, 11), (0, 1)]


def decoder_of(config, seed=0):
    model = MSADecoder(config)
    model.load_state_dict({n: initial_weight(n, config, seed) for n in weight_shapes(config)})
    return model


GATES = ["none", "threshold"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("doc_labels", [False, True])
def test_megatron_and_serving_modules_agree(megatron, gate, doc_labels):
    config = tiny_config(gate)
    batch = random_batch(RAGGED, CONTEXTS, config, doc_labels=doc_labels)
    ours, streams = megatron(config).hidden_states(batch)
    out = decoder_of(config)(batch)
    expected = out.hidden if not doc_labels else torch.cat([out.doc_hidden, out.hidden])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for layer in config.router_layers:
        assert torch.equal(streams.routings[layer].documents, out.routings[layer].documents)


@pytest.mark.parametrize("settings", [{}, {"decouple": False}, {"similarity": "dot"}])
@pytest.mark.parametrize("recompute", [False, True])
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


@pytest.mark.parametrize("gate", GATES)
def test_memory_in_a_bank_agrees_with_memory_in_the_batch(gate):
    config = tiny_config(gate)
    contexts = [(0, 9), (0, 4), (0, 12)]
    batch = random_batch(RAGGED[:1], contexts, config)
    model = decoder_of(config)
    with torch.no_grad():
        expected = model(batch)
        pooled = model.encode(batch.doc_tokens, batch.doc_cu)
        chunk_cu = torch.tensor([0, 1, 4, 5, 9, 11, 13])
        memory = ResidentMemory(pooled, chunk_cu, config.router)
        prefill = model.prefill(
            batch.tokens, batch.ctx_cu, batch.positions, batch.is_query, batch.memory_from, memory
        )
    torch.testing.assert_close(prefill.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
    for layer, reading in prefill.selected.items():
        assert torch.equal(reading.routing.documents, expected.routings[layer].documents)


@pytest.mark.parametrize("gate", GATES)
def test_decoding_token_by_token_agrees_with_the_whole_context(gate):
    config = tiny_config(gate)
    whole = random_batch(RAGGED[:1], [(0, 8), (0, 8)], config)
    model, length, prompt = decoder_of(config), 11, 7  # head 3, question 4, then 4 decoded
    starts = whole.ctx_cu[:-1]
    kept = torch.cat([torch.arange(s, s + prompt) for s in starts.tolist()])
    with torch.no_grad():
        expected = model(whole).hidden.unflatten(0, (2, length))
        pooled = model.encode(whole.doc_tokens, whole.doc_cu)
        memory = ResidentMemory(pooled, torch.tensor([0, 1, 4, 5, 9, 11, 13]), config.router)
        prefill = model.prefill(
            whole.tokens[kept], torch.tensor([0, prompt, 2 * prompt]), whole.positions[kept],
            whole.is_query[kept], whole.memory_from, memory,
        )  # fmt: skip
        torch.testing.assert_close(prefill.hidden.unflatten(0, (2, prompt)), expected[:, :prompt])
        slots = KVCache(config, 2, length, prefill.hidden)
        slots.admit(prefill, (0, 1), (0, 1))
        for place in range(prompt, length):
            step = model.decode(whole.tokens[starts + place], slots, slots.begin([True, True]))
            torch.testing.assert_close(step, expected[:, place], rtol=1e-5, atol=1e-5)


def test_contexts_and_documents_do_not_see_one_another():
    config = tiny_config()
    model = decoder_of(config)
    together = random_batch(RAGGED[:1], [(0, 9), (0, 9)], config)
    with torch.no_grad():
        first = model(together)
        changed = together.tokens.clone()
        changed[12:] = (changed[12:] + 1) % config.vocab_size
        second = model(type(together)(**{**vars(together), "tokens": changed}))
    torch.testing.assert_close(first.hidden[:12], second.hidden[:12])
    assert not torch.allclose(first.hidden[12:], second.hidden[12:])


def test_the_head_never_depends_on_the_memory():
    config = tiny_config()
    model = decoder_of(config)
    one = random_batch(RAGGED[:1], [(0, 9)], config)
    other = type(one)(**{**vars(one), "doc_tokens": (one.doc_tokens + 7) % config.vocab_size})
    with torch.no_grad():
        a, b = model(one).hidden, model(other).hidden
    assert torch.equal(a[:3], b[:3])
    assert not torch.allclose(a[3:], b[3:])
