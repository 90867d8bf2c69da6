"""The serving module's parts compute what its whole pass computes; who sees whom."""

import pytest
import torch

from msa_train.errors import CheckpointError
from msa_train.model.attention import self_attention
from msa_train.model.decoder import MSADecoder, PooledMemory
from msa_train.model.kv_cache import KVCache
from msa_train.model.weights import initial_weight, weight_shapes
from tests.batches import (
    OWN_ROUTER,
    RAGGED,
    VOTING_ROUTER,
    decoder_of,
    random_batch,
    tiny_config,
)

ROUTERS = pytest.mark.parametrize(
    ("gate", "router"),
    [("none", {}), ("threshold", {}), ("threshold", OWN_ROUTER), ("none", VOTING_ROUTER)],
)


@ROUTERS
def test_memory_in_a_bank_agrees_with_memory_in_the_batch(gate, router):
    config = tiny_config(gate, **router)
    contexts = [(0, 9), (0, 4), (0, 12)]
    batch = random_batch(RAGGED[:1], contexts, config)
    model = decoder_of(config)
    with torch.no_grad():
        expected = model(batch)
        pooled = model.encode(batch.doc_tokens, batch.doc_cu)
        chunk_cu = torch.tensor([0, 1, 4, 5, 9, 11, 13])
        memory = PooledMemory(pooled, chunk_cu, config.router)
        prefill = model.prefill(
            batch.tokens, batch.ctx_cu, batch.positions, batch.is_query, batch.memory_from, memory
        )
    torch.testing.assert_close(prefill.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
    for layer, selected in prefill.selected.items():
        assert torch.equal(selected.routing.documents, expected.routings[layer].documents)


@ROUTERS
def test_decoding_token_by_token_agrees_with_the_whole_context(gate, router):
    config = tiny_config(gate, **router)
    whole = random_batch(RAGGED[:1], [(0, 8), (0, 8)], config)
    model, length, prompt = decoder_of(config), 11, 7  # head 3, question 4, then 4 decoded
    starts = whole.ctx_cu[:-1]
    kept = torch.cat([torch.arange(s, s + prompt) for s in starts.tolist()])
    with torch.no_grad():
        expected = model(whole).hidden.unflatten(0, (2, length))
        pooled = model.encode(whole.doc_tokens, whole.doc_cu)
        memory = PooledMemory(pooled, torch.tensor([0, 1, 4, 5, 9, 11, 13]), config.router)
        prefill = model.prefill(
            whole.tokens[kept], torch.tensor([0, prompt, 2 * prompt]), whole.positions[kept],
            whole.is_query[kept], whole.memory_from, memory,
        )  # fmt: skip
        torch.testing.assert_close(prefill.hidden.unflatten(0, (2, prompt)), expected[:, :prompt])
        cache = KVCache(config, 2, length, prefill.hidden)
        cache.admit(prefill, (0, 1), (0, 1))
        for place in range(prompt, length):
            step = model.decode(whole.tokens[starts + place], cache, cache.begin_step([True, True]))
            torch.testing.assert_close(step, expected[:, place], rtol=1e-5, atol=1e-5)


def test_layers_that_only_vote_leave_the_backbone_as_it_is():
    """Bit for bit what its layers compute with no memory in sight."""
    config = tiny_config("none", **VOTING_ROUTER)
    batch, model = random_batch(RAGGED[:1], [(0, 9), (0, 4)], config), decoder_of(config)
    with torch.no_grad():
        pooled = model.encode(batch.doc_tokens, batch.doc_cu)
        memory = PooledMemory(pooled, torch.tensor([0, 1, 4, 5, 9, 11, 13]), config.router)
        prefill = model.prefill(
            batch.tokens, batch.ctx_cu, batch.positions, batch.is_query, batch.memory_from, memory
        )
        plain = model.run(
            batch.tokens, batch.positions, lambda _, h, x: self_attention(x, batch.ctx_cu)
        )
        alone = model.prefill_alone(batch.tokens, batch.ctx_cu, batch.positions)
    assert torch.equal(prefill.hidden, plain) and torch.equal(alone.hidden, plain)
    assert torch.equal(alone.next_positions, prefill.next_positions) and not alone.selected
    for one, other in zip(
        [*alone.keys, *alone.values], [*prefill.keys, *prefill.values], strict=True
    ):
        assert torch.equal(one, other)
    assert prefill.selected.keys() == {0, 2} and not prefill.read
    assert pooled[0].k.shape[1:] == (0, config.head_dim)


def test_documents_go_no_further_than_the_last_router_layer():
    config = tiny_config("none", layers="0,1")
    model, seen = decoder_of(config), []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda _, x, __, n=number: seen.append((n, len(x[0]))))
    batch = random_batch(RAGGED[:1], [(0, 9)], config)
    with torch.no_grad():
        model(batch)
        model.encode(batch.doc_tokens, batch.doc_cu)
    both, contexts = len(batch.doc_tokens) + len(batch.tokens), len(batch.tokens)
    whole = [(0, both), (1, contexts), (2, contexts), (3, contexts)]
    assert seen == [*whole, (0, len(batch.doc_tokens))]


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


def test_weights_that_do_not_fit_are_named():
    config = tiny_config()
    weights = {name: initial_weight(name, config, 0) for name in weight_shapes(config)}
    tied = weights | {"lm_head.weight": torch.zeros(1), "temperature": torch.ones(1)}
    loaded = MSADecoder(config).load_published(tied)
    assert torch.equal(loaded.model.norm.weight, weights["model.norm.weight"])
    norm = weights.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"missing \['model\.norm\.weight'\] \(1 in all\)"):
        MSADecoder(config).load_published(weights)
    for bad, words in (({"other": norm}, "unknown"), ({"model.norm.weight": norm[1:]}, "expected")):
        with pytest.raises(CheckpointError, match=words):
            MSADecoder(config).load_published({**weights, "model.norm.weight": norm} | bad)
