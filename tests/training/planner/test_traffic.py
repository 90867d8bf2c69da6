"""Payloads of collectives, against those that torch counts; their time on given machines."""

from collections import Counter

import pytest

from msa_train.hardware import parse_cluster
from msa_train.model.config import PRESETS
from msa_train.training.planner.layout import Layout, Passes
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.traffic import Traffic, traffic
from msa_train.training.planner.weights import weights
from tests.distributed.ranks import run_ranks
from tests.training.planner.conftest import RUNS, names
from tests.training.planner.observed import CACHE, MODEL, SCALAR, batch, layout_of, observe

BANK = SampleSize.usual(65_536, 1024, 32, 128)


def payloads(name):
    """operation -> payload of a step of a run, as the planner has it."""
    tensor, (settings, samples) = RUNS[name]
    size, found = 2 if settings.get("precision") == "bf16" else 4, {}
    given = MODEL, layout_of(tensor, settings), weights(MODEL, tensor)
    for each in traffic(*given, SampleSize.of_batch(batch()), samples, size):
        found[each.operation] = found.get(each.operation, 0) + each.payload
    return found


@pytest.mark.parametrize("name", names(name for name in RUNS if name != "zero3-cached"))
def test_ranks_send_what_torch_counts(observed, name):
    """To the last byte, but for a few numbers that make shares of equal length under ZeRO."""
    ours, counted = payloads(name), observed(name)["payload"]
    assert ours.keys() == counted.keys()
    for operation, payload in counted.items():
        assert abs(ours[operation] - payload) <= (SCALAR if RUNS[name][0] == 1 else 0), operation


@pytest.mark.slow
def test_zero_3_gathers_for_every_pass_of_the_gradient_cache(observed):
    ours, counted = payloads("zero3-cached"), observed("zero3-cached")["payload"]
    assert abs(ours["reduce-scatter"] - counted["reduce-scatter"]) <= SCALAR
    assert ours["all-gather"] == pytest.approx(counted["all-gather"], rel=0.02)


@pytest.mark.slow
def test_ranks_that_share_documents_send_what_torch_counts():
    runs = {
        (stage, cache): {
            "document_parallel": 2,
            "zero_stage": stage,
            "gradient_cache_tokens": cache,
        }
        for stage in (1, 2, 3)
        for cache in (None, CACHE)
    }
    given = {key: (settings, 1) for key, settings in runs.items()}
    for (stage, cache), seen in run_ranks(2, observe, 1, given, 2)[0].items():
        layout, ours = Layout(documents=2, zero=stage, cache=cache), Counter()
        for each in traffic(MODEL, layout, weights(MODEL), SampleSize.of_batch(batch()), 1, 4):
            ours[each.operation] += each.payload
        counted = seen["payload"]
        # ZeRO-3 compares the order of weights between ranks.
        assert counted.pop("broadcast_", 0) <= 8 * 300
        assert ours.keys() == counted.keys()
        for operation, payload in counted.items():
            gathers = stage == 3 and operation == "all-gather"
            most = 0.04 * payload if gathers else SCALAR
            assert abs(ours[operation] - payload) <= most, (stage, cache, operation)


def found(layout, kind, sample=BANK, samples=1):
    model = PRESETS["4b"]
    given = traffic(model, layout, weights(model, layout.tensor), sample, samples, 2)
    return {each.operation: each for each in given if each.kind == kind}


def test_a_ring_sends_twice_for_a_sum():
    total = Traffic("gradients", "all-reduce", 800, 4)
    assert total.sent == 1200 and Traffic("weights", "all-gather", 800, 4).sent == 600
    cluster = parse_cluster("16xH100-80GB")
    assert total.seconds(cluster) == 1200 / 450e9
    assert Traffic("gradients", "all-reduce", 800, 2, stride=8).seconds(cluster) == 800 / 50e9
    assert Traffic("gradients", "all-reduce", 0, 1).seconds(cluster) == 0


def test_only_pooled_states_of_shared_documents_move():
    """SPEC section 5: 2 KiB each of pooled key and value per chunk and layer, here with router keys
    in float32."""
    one = found(Layout(documents=8), "pooled states")
    chunks = 65_536 // 64
    assert one["all-gather"].payload == one["reduce-scatter"].payload == chunks * 18 * 8 * 1024
    again = found(Layout(documents=8, recompute="layer"), "pooled states")
    assert again["all-gather"].payload == one["all-gather"].payload  # outside of the layers
    assert not found(Layout(documents=8, sharded=True), "pooled states")
    assert not found(Layout(replicas=8), "pooled states")
    split = found(Layout(tensor=2, documents=4), "pooled states")["all-gather"]
    assert split.payload == chunks * 18 * 6 * 1024 and (split.ranks, split.stride) == (4, 2)


def test_a_model_larger_than_what_may_be_live_is_gathered_nearly_twice():
    once = weights(PRESETS["4b"]).all
    sent = found(Layout(replicas=8, zero=3), "weights")["all-gather"].payload
    assert sent == pytest.approx(2 * (2 * once - 0.5e9), rel=1e-3)


def test_groups_of_the_gradient_cache_are_of_a_ranks_own_documents():
    layout, quarter, eighth = Layout(documents=4, cache=10_000), 65_536 // 4, 65_536 // 8
    assert layout.passes(quarter, 3) == Passes(3, 2, True)
    assert layout.passes(eighth, 3) == Passes(3, 1, False)  # its share is one group
    assert Layout(documents=8, zero=3).passes(eighth, 3) == Passes(3, 1, True)
    assert Layout(cache=65_536).passes(65_536, 3) == Passes(3, 0, False)
