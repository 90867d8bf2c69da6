"""The estimate of what a step keeps, against what autograd keeps, and the advice made of it."""

import re

import pytest
import torch

from msa_train.config import load_config
from msa_train.hardware import parse_bytes
from msa_train.model.config import PRESETS, ModelConfig, RouterConfig
from msa_train.training.activations import Activations, advice, document_cost
from tests.batches import random_batch

MODEL = ModelConfig(
    layers=5, hidden=96, heads=6, kv_heads=2, head_dim=32, ffn=320, vocab_size=128,
    router=RouterConfig(layers="2,3", top_k=2, chunk_size=64),
)  # fmt: skip


def measured(module, batch):
    """Bytes of all storages that autograd holds after a forward pass, weights left out."""
    held = {}
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = module(batch)
    assert losses.lm.requires_grad
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_what_is_kept_is_what_autograd_holds(megatron, recompute, dtype):
    """What a recomputed layer holds for a moment comes on top, and is not held yet."""
    batch = random_batch([[256] * 6], [(0, 13)] * 2, MODEL)
    found = measured(megatron(MODEL, recompute=recompute).to(dtype), batch)
    estimate = Activations(MODEL, dtype.itemsize)
    tokens = len(batch.doc_tokens), len(batch.tokens)
    working = {
        "none": 0,
        "attention": estimate.attention,
        "layer": estimate.attention + estimate.feed_forward,
    }
    kept = estimate.kept(recompute, *tokens) - sum(tokens) * working[recompute]
    # Routing and the loss are small beside it, but not beside a layer's input.
    assert 0.9 * found - 200_000 < kept < 1.1 * found


def test_the_published_model_keeps_megabytes_a_token():
    plain, fused = (Activations(PRESETS["4b"], fused=fused) for fused in (False, True))
    assert plain.kept("none", 1000) / 1000 == pytest.approx(5.4e6, rel=0.03)
    assert fused.kept("none", 1000) < 0.85 * plain.kept("none", 1000)
    assert plain.kept("layer", 1000) < 0.1 * plain.kept("none", 1000)


def test_a_tensor_parallel_rank_keeps_its_heads_and_the_states_between():
    whole, half = Activations(PRESETS["4b"]), Activations(PRESETS["4b"], tensor=2)
    between = 2 * 2560 * (2 + 4)  # input and output of a layer's two norms
    for each in ("attention", "feed_forward"):
        assert 2 * getattr(half, each) - getattr(whole, each) == between // 2
    assert half.kept("layer", 1000) > 0.8 * whole.kept("layer", 1000)  # its input is not divided


def test_sequence_parallel_ranks_divide_the_states_between_too():
    whole, half = Activations(PRESETS["4b"]), Activations(PRESETS["4b"], tensor=2, sequence=True)
    for recompute in ("none", "attention", "layer"):
        assert 2 * half.kept(recompute, 1000, 100) == whole.kept(recompute, 1000, 100)


def test_each_saving_costs_a_forward_pass():
    model = PRESETS["4b"]
    costs = [document_cost(model, *each) for each in (("none", 0), ("layer", 0), ("none", 1))]
    assert costs == [6, 8, 8] and document_cost(model, "layer", True) == 10
    weights = 2 * 2560 * (4096 + 1024), 3 * 2560 * 9728
    part = document_cost(model, "attention", False)
    assert part == pytest.approx(6 + 2 * weights[0] / sum(weights))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recompute": "layer"}, None),
        ({"gradient_cache_tokens": 4096}, None),
        ({"recompute": "layer", "gradient_cache_tokens": 65536}, None),  # a bank is one group
        ({"recompute": "layer", "gradient_cache_tokens": 32768, "document_parallel": 2}, None),
        ({"recompute": "layer", "gradient_cache_tokens": 49152}, "take recompute alone"),
        ({"recompute": "layer", "gradient_cache_tokens": 256}, "take the gradient cache alone"),
    ],
)
def test_a_run_with_both_is_told_which_to_take(settings, said):
    given = [f"--training.{key}={value}" for key, value in settings.items()]
    stages = "[{name: main, steps: 4, lr: 1e-3, data: {memory_tokens: 65536}}]"
    told = advice(load_config([*given, "--stages", stages]))
    if said is None:
        assert told is None
    else:
        assert said in told and "10.0 FLOPs" in told and "65,536 tokens" in told


def test_ranks_that_share_a_bank_keep_their_part_of_it():
    def told(ranks, pooled="gathered"):
        settings = {"recompute": "layer", "gradient_cache_tokens": 256, "document_parallel": ranks}
        settings |= {"pooled_states": pooled}
        given = [f"--training.{key}={value}" for key, value in settings.items()]
        stages = "[{name: main, steps: 4, lr: 1e-3, data: {memory_tokens: 65536}}]"
        said = advice(load_config([*given, "--stages", stages]))
        found = re.findall(r"([0-9.]+) ([kMG]B)", said)
        return [parse_bytes(" ".join(each), "kept") for each in found]

    alone, cached, both = told(1)
    shared = told(8)
    assert shared[0] == pytest.approx(alone / 8, rel=0.3)
    assert shared[1:] == [cached, both]  # the whole bank's pooled states, and one group
    assert told(8, "sharded")[1] < cached
