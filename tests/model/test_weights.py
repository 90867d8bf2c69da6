"""The weight-name map in both directions, and initial weights."""

import pytest
import torch

from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import (
    initial_weight,
    megatron_shard,
    published_weights,
    resharded,
    weight_maps,
    weight_shapes,
)
from tests.batches import tiny_config


@pytest.mark.parametrize("gate", ["none", "threshold"])
@pytest.mark.parametrize("decouple", [True, False])
def test_shapes_are_those_of_the_serving_module(gate, decouple):
    config = tiny_config(gate, decouple=decouple)
    theirs = {name: tuple(p.shape) for name, p in MSADecoder(config).named_parameters()}
    assert weight_shapes(config) == theirs


@pytest.mark.parametrize("size", [1, 2])
def test_splitting_and_merging_gives_the_weights_back(size):
    config = tiny_config()
    full = {name: initial_weight(name, config, 3) for name in weight_shapes(config)}
    shards = [
        {
            each.megatron: megatron_shard(each, full.__getitem__, config, rank, size)
            for each in weight_maps(config)
        }
        for rank in range(size)
    ]
    merged = dict(published_weights(shards, config))
    assert merged.keys() == full.keys()
    for name, weight in merged.items():
        assert torch.equal(weight, full[name]), name


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 2)])
def test_what_other_ranks_had_is_cut_anew(before, now):
    config = tiny_config("threshold")
    full = {name: initial_weight(name, config, 3) for name in weight_shapes(config)}
    for each in weight_maps(config):
        parts, expected = (
            [megatron_shard(each, full.__getitem__, config, rank, size) for rank in range(size)]
            for size in (before, now)
        )
        for rank, part in enumerate(expected):
            assert torch.equal(resharded(each, parts, config, rank, now), part), each.megatron


def test_initial_weights_depend_on_seed_and_name_alone():
    config = tiny_config()
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(initial_weight(name, config, 1), initial_weight(name, config, 1))
    assert not torch.equal(initial_weight(name, config, 1), initial_weight(name, config, 2))


def test_router_queries_start_as_repeated_router_keys():
    config = tiny_config()
    q = initial_weight("model.layers.2.self_attn.router_q_proj.0.weight", config, 0)
    k = initial_weight("model.layers.2.self_attn.router_k_proj.0.weight", config, 0)
    heads = q.unflatten(0, (config.heads, -1))
    for head in range(config.heads):
        assert torch.equal(heads[head], k.unflatten(0, (config.kv_heads, -1))[head // 2])


def test_reading_starts_as_copying():
    config = tiny_config()
    o = initial_weight("model.layers.2.self_attn.o_proj.weight", config, 0)
    v = initial_weight("model.layers.2.self_attn.v_proj.weight", config, 0)
    assert torch.equal(o[:, : config.head_dim], config.copy_start * v[: config.head_dim].T)
    below = initial_weight("model.layers.1.self_attn.o_proj.weight", config, 0)
    assert float(below.std()) < 0.2
