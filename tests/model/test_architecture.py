"""Shapes of backbones; docs/extending.md carried out for Mistral."""

import json

import pytest
import torch
import torch.nn.functional as F

from msa_train.errors import CheckpointError, ConfigError
from msa_train.interop.published_config import from_published, to_published
from msa_train.model import architecture
from msa_train.model.architecture import Architecture, read_geometry, whole_geometry
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.decoder import MSADecoder
from msa_train.model.losses import token_loss_sum
from msa_train.model.rope import RopeScaling
from msa_train.model.weights import (
    initial_weight,
    megatron_shard,
    published_weights,
    weight_maps,
    weight_shapes,
)
from tests.batches import CONTEXTS, RAGGED, random_batch

# The example of docs/extending.md.
ENTRIES = {
    "mistral": Architecture(
        "mistral", qk_norm=False, qkv_bias=False, defaults={"rope_theta": 1e4, "norm_eps": 1e-6}
    ),
}


@pytest.fixture(params=[*architecture.ARCHITECTURES, *ENTRIES])
def config(request, monkeypatch):
    for name, entry in ENTRIES.items():
        monkeypatch.setitem(architecture.ARCHITECTURES, name, entry)
    return ModelConfig(
        layers=4, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab_size=64,
        router=RouterConfig(top_k=3, chunk_size=4), architecture=request.param,
    )  # fmt: skip


def weights_of(config):
    """As from a seed, but no bias or norm is as it was drawn: all of them must take part."""
    found = {}
    for name in weight_shapes(config):
        weight = initial_weight(name, config, 0)
        if weight.dim() == 1 and ".router_" not in name:
            noise = torch.Generator().manual_seed(len(name))
            weight = weight + 0.3 * torch.randn(weight.shape, generator=noise)
        found[name] = weight
    return found


def test_both_modules_have_the_shape_and_agree(megatron, config):
    weights = weights_of(config)
    model = MSADecoder(config).load_published(weights)
    module = megatron(config)
    module.load_published(weights.__getitem__)
    biases = [name for name in weights if name.endswith("bias")]
    assert len(biases) == (3 * config.layers if config.architecture == "qwen2" else 0)
    assert any("q_norm" in name for name in weights) == (config.architecture == "qwen3")
    batch = random_batch(RAGGED, CONTEXTS, config)
    out = model(batch)
    hidden, streams = module.hidden_states(batch)
    torch.testing.assert_close(hidden, out.hidden, rtol=1e-5, atol=1e-5)
    for layer in config.router_layers:
        assert torch.equal(streams.routings[layer].documents, out.routings[layer].documents)
    asked = batch.labels >= 0
    lm = token_loss_sum(model.logits(out.hidden[asked]), batch.labels[asked])
    module_lm = module(batch).lm
    torch.testing.assert_close(module_lm, lm)
    lm.backward()
    module_lm.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name, gradient in published_weights([gradients], config):
        ours = model.get_parameter(name).grad
        torch.testing.assert_close(gradient, ours, rtol=1e-4, atol=1e-5, msg=name)
    assert all(model.get_parameter(name).grad.any() for name in biases if "k_proj" not in name)


def plain_transformer(config, weights, tokens, positions):
    """The backbone alone, written down once more: final states of one causal sequence [N]."""
    half = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = positions[:, None] / config.rope_theta**half
    cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weight

    def turn(x):  # [heads, N, D]
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config.layers):
        own = {
            name.removeprefix(f"model.layers.{layer}."): weight for name, weight in weights.items()
        }
        h = norm(x, own["input_layernorm.weight"])
        q, k, v = (
            F.linear(h, own[f"self_attn.{n}_proj.weight"], own.get(f"self_attn.{n}_proj.bias"))
            .unflatten(1, (-1, config.head_dim))
            .transpose(0, 1)
            for n in "qkv"
        )
        if "self_attn.q_norm.weight" in own:
            q, k = norm(q, own["self_attn.q_norm.weight"]), norm(k, own["self_attn.k_norm.weight"])
        k, v = (each.repeat_interleave(config.heads // config.kv_heads, 0) for each in (turn(k), v))
        read = F.scaled_dot_product_attention(turn(q), k, v, is_causal=True)
        x = x + F.linear(read.transpose(0, 1).flatten(1), own["self_attn.o_proj.weight"])
        h = norm(x, own["post_attention_layernorm.weight"])
        gate, up = (F.linear(h, own[f"mlp.{n}_proj.weight"]) for n in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, own["mlp.down_proj.weight"])
    return norm(x, weights["model.norm.weight"])


def test_without_a_memory_it_is_the_backbone(config):
    weights = weights_of(config)
    batch = random_batch([[]], [(0, 9)], config)
    with torch.no_grad():
        ours = MSADecoder(config).load_published(weights)(batch).hidden
    theirs = plain_transformer(config, weights, batch.tokens, batch.positions)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_every_weight_comes_back_from_its_shards(config, size):
    weights = weights_of(config)
    shards = [
        {
            each.megatron: megatron_shard(each, weights.__getitem__, config, rank, size)
            for each in weight_maps(config)
        }
        for rank in range(size)
    ]
    merged = dict(published_weights(shards, config))
    assert merged.keys() == weights.keys()
    assert all(torch.equal(merged[name], weight) for name, weight in weights.items())


def test_an_export_says_its_architecture(config):
    stored = json.loads(json.dumps(to_published(config)))
    assert from_published(stored, "serving") == config
    assert ("architecture" in stored["msa_train"]["model"]) == (config.architecture != "qwen3")
    assert stored["attention_bias"] == (config.architecture == "qwen2")


def test_a_family_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"model\.architecture is 'gpt2': give qwen3"):
        ModelConfig(architecture="gpt2")
    with pytest.raises(CheckpointError, match="model_type 'mixtral'"):
        read_geometry({"model_type": "mixtral"})
    with pytest.raises(CheckpointError, match="model_type 'mistral'"):
        read_geometry({"msa_train": {"model": {"architecture": "mistral"}}})


# As Qwen3-4B-Instruct-2507 writes it.
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 9728,
    "max_position_embeddings": 262144, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_a_published_backbone_is_read():
    assert whole_geometry(QWEN3) == {
        "architecture": "qwen3", "layers": 36, "hidden": 2560, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "ffn": 9728, "vocab_size": 151936, "rope_theta": 5e6, "norm_eps": 1e-6,
        "tie_embeddings": True, "rope_scaling": None,
    }  # fmt: skip
    newer = {**QWEN3, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}
    del newer["rope_theta"], newer["head_dim"]
    assert whole_geometry(newer)["rope_theta"] == 7e5
    assert whole_geometry(newer)["head_dim"] == 80  # hidden / heads
    wide = {**QWEN3, "sliding_window": 4096, "layer_types": ["full_attention"] * 36}
    assert whole_geometry(wide) == whole_geometry(QWEN3)  # a window that is not used
    del newer["vocab_size"]
    with pytest.raises(CheckpointError, match="no 'vocab_size'"):
        whole_geometry(newer)


def test_stretched_positions_are_read_under_either_name():
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768}
    expected = RopeScaling("yarn", 4.0, 32768)
    older = {**QWEN3, "rope_scaling": {"type": "yarn", **scaling}}
    newer = {**QWEN3, "rope_parameters": {"rope_type": "yarn", "rope_theta": 7e5, **scaling}}
    assert read_geometry(older)["rope_scaling"] == read_geometry(newer)["rope_scaling"] == expected
    short = {**QWEN3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    assert read_geometry(short)["rope_scaling"].original_max_position_embeddings == 262144


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "ext_factor": 1.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_theta": 5e5, "factor": 4.0}},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"use_sliding_window": True},
        {"sliding_window": 4096, "use_sliding_window": None},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"num_experts": 128},
        {"partial_rotary_factor": 0.5},
        {"final_logit_softcapping": 30.0},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_would_be_computed_wrongly_is_refused_by_name(changed):
    with pytest.raises(CheckpointError, match=next(iter(changed))):
        read_geometry({**QWEN3, **changed})
