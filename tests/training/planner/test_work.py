"""FLOPs, against those that torch counts and those of other countings here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_train.bench.floor import encode_flops
from msa_train.model.config import PRESETS, ModelConfig, RouterConfig
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.work import contexts_forward, documents_forward, work
from tests.batches import random_batch

SETTINGS = {"layers": 5, "hidden": 96, "heads": 6, "kv_heads": 2, "head_dim": 32, "ffn": 320}


def products(forward):
    return forward.projections + forward.feed_forward + forward.head


@pytest.mark.parametrize(("reduce", "again"), [("max", ("attention", "layer")), ("pooled", ())])
def test_products_with_weights_are_those_that_torch_counts(megatron, reduce, again):
    """Attention and scores are kernels of ours, which its counter does not see on a CPU."""
    router = RouterConfig(layers="2,3", top_k=2, chunk_size=16, query_reduce=reduce)
    model = ModelConfig(**SETTINGS, vocab_size=256, router=router)
    batch = random_batch([[40] * 6], [(0, 13)] * 2, model)
    sample, counted = SampleSize.of_batch(batch), {}
    for recompute in ("none", *again):
        module = megatron(model, recompute=recompute)
        with FlopCounterMode(display=False) as forward:
            losses = module(batch)
        with FlopCounterMode(display=False) as backward:
            (losses.lm + losses.router).backward()
        counted[recompute] = forward.get_total_flops(), backward.get_total_flops()
    streams = documents_forward(model, sample), contexts_forward(model, sample)
    assert sum(map(products, streams)) == counted["none"][0]
    assert counted["none"][1] == pytest.approx(2 * counted["none"][0], rel=2e-3)
    own = sum(each.attention + each.scores for each in streams)
    for recompute in again:
        found = work(model, Layout(recompute=recompute), sample).recompute - own
        assert found == counted[recompute][1] - counted["none"][1]


def test_documents_cost_what_encoding_them_costs():
    """But for the last router layer's projections, and router keys: a floor leaves them out."""
    model, sample = PRESETS["4b"], SampleSize.usual(64 * 512, 64, 1, 1)
    ours, floor = documents_forward(model, sample), encode_flops(model, [512] * 64)
    qkv = 2 * 64 * 512 * 2560 * (4096 + 2 * 1024)
    keys = 2 * sample.chunks(64) * 18 * 2560 * 1024
    assert ours.total == floor + qkv + keys


def test_a_context_pays_for_what_it_reads():
    model, bank = PRESETS["4b"], (14_000, 28, 32, 128)
    sample = SampleSize.usual(*bank)
    found = contexts_forward(model, sample)
    chunks = 8  # of 500 tokens
    pairs = 32 * (128 * 129 // 2 * 36 + 128 * 16 * chunks * 18)
    assert found.attention == 4 * 4096 * pairs
    assert found.scores == 2 * sample.query_tokens * 28 * chunks * 1024 * 18


def test_what_is_saved_in_memory_is_paid_in_arithmetic():
    model, sample = PRESETS["4b"], SampleSize.usual(65_536, 1024, 32, 128)
    plain = work(model, Layout(), sample)
    assert plain.total == plain.useful and 0 < plain.attention < 0.2 * plain.total
    cached = work(model, Layout(cache=16_384), sample)
    assert cached.cache == documents_forward(model, sample).total and cached.useful == plain.useful
    assert not work(model, Layout(cache=65_536), sample).cache  # one group
    both = work(model, Layout(cache=16_384, recompute="layer"), sample)
    assert both.documents + both.cache == pytest.approx(4 / 3 * plain.documents, rel=0.02)
    assert both.times(0.5).total == both.total / 2
    assert torch.tensor(both.attention) > cached.attention > plain.attention
