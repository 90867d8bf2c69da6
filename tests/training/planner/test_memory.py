"""Bytes of a rank, against the account of torch's CPU allocator."""

import pytest
import torch

from msa_train.model.config import PRESETS
from msa_train.training.planner import memory
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.memory import RankBytes, needed, rank_bytes, reduce_bucket
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.weights import weights
from tests.batches import random_batch, tiny_config
from tests.distributed.ranks import run_ranks
from tests.training.planner.conftest import RUNS, names
from tests.training.planner.observed import BUCKET, CACHE, MODEL, batch, layout_of, observe


@pytest.mark.parametrize("name", names())
def test_a_rank_holds_what_torch_allocates(observed, name, monkeypatch):
    monkeypatch.setattr(memory, "BUCKET", BUCKET)
    tensor, (settings, samples) = RUNS[name]
    given = MODEL, layout_of(tensor, settings), weights(MODEL, tensor)
    size = 2 if settings.get("precision") == "bf16" else 4
    found = rank_bytes(*given, SampleSize.of_batch(batch()), samples, size)
    held = sum(each.bytes for each in found if each.phase == "held")
    assert held == pytest.approx(observed(name)["held"], rel=0.1)
    assert needed(found) == pytest.approx(observed(name)["most"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("pooled", ["gathered", "sharded"])
def test_a_rank_that_shares_documents_holds_what_torch_allocates(monkeypatch, pooled):
    monkeypatch.setattr(memory, "BUCKET", BUCKET)
    shared = {"document_parallel": 2, "pooled_states": pooled}
    runs = {
        (stage, cache): ({**shared, "zero_stage": stage, "gradient_cache_tokens": cache}, 1)
        for stage in (1, 2, 3)
        for cache in (None, CACHE)
    }
    for rank in run_ranks(2, observe, 1, runs, 2):
        for (stage, cache), seen in rank.items():
            layout = Layout(documents=2, zero=stage, cache=cache, sharded=pooled == "sharded")
            given = MODEL, layout, weights(MODEL), SampleSize.of_batch(batch())
            found = rank_bytes(*given, 1, 4)
            held = sum(each.bytes for each in found if each.phase == "held")
            assert held == pytest.approx(seen["held"], rel=0.1), (stage, cache)
            assert needed(found) == pytest.approx(seen["most"], rel=0.15), (stage, cache)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_that_offloads_holds_what_torch_allocates(monkeypatch, precision):
    """On a CPU the host's memory and the device's are one."""
    monkeypatch.setattr(memory, "BUCKET", BUCKET)
    optimizer = {"offload_optimizer": {"device": "cpu"}}
    both = optimizer | {"offload_param": {"device": "cpu"}}
    runs = {}
    for stage, samples, zero in (
        (1, 1, optimizer), (1, 2, optimizer), (2, 1, optimizer), (2, 2, optimizer),
        (3, 1, optimizer), (3, 2, optimizer), (3, 2, both),
    ):  # fmt: skip
        offload = "parameters" if zero is both else "optimizer"
        settings = {"zero_stage": stage, "deepspeed": {"zero_optimization": zero}}
        runs[stage, samples, offload] = {"precision": precision, **settings}, samples
    for rank in run_ranks(2, observe, 1, runs):
        for (stage, samples, offload), seen in rank.items():
            layout = Layout(replicas=2, zero=stage, offload=offload)
            given = MODEL, layout, weights(MODEL), SampleSize.of_batch(batch())
            found = rank_bytes(*given, samples, 2 if precision == "bf16" else 4)
            held = sum(each.bytes for each in found if each.phase == "held")
            assert held == pytest.approx(seen["held"], rel=0.1), (stage, samples, offload)
            most = needed(found) + needed(found, "host")
            assert most == pytest.approx(seen["most"], rel=0.15), (stage, samples, offload)


@pytest.mark.slow
def test_a_bucket_that_all_gradients_do_not_fill_is_copied_as_far_as_it_is_full(monkeypatch):
    bucket = 8_000_000
    assert bucket > 2 * weights(MODEL).all
    monkeypatch.setattr(memory, "BUCKET", bucket)
    runs = {stage: ({"zero_stage": stage}, 2) for stage in (1, 2)}
    for rank in run_ranks(2, observe, 1, runs, 1, bucket):
        for stage, seen in rank.items():
            given = MODEL, Layout(replicas=2, zero=stage), weights(MODEL)
            found = rank_bytes(*given, SampleSize.of_batch(batch()), 2, 4)
            assert needed(found) == pytest.approx(seen["most"], rel=0.15), stage


@pytest.mark.parametrize("loss", ["all", "upper_half"])
def test_scores_are_kept_as_autograd_keeps_them(megatron, loss):
    model = tiny_config("threshold", depth=5, layers="1,2,3", loss_layers=loss, chunk_size=16)
    batch, kept = random_batch([[16] * 50], [(0, 4)] * 30, model), {}

    def keep(tensor):
        if tensor.shape == (30, 50):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = megatron(model)(batch)
    assert losses.router.requires_grad
    given = model, Layout(), weights(model), SampleSize.of_batch(batch), 1, 4
    [scores] = (each for each in rank_bytes(*given) if each.what == "router scores")
    assert scores.bytes == sum(storage.nbytes() for storage in kept.values())


def of(**layout):
    chosen = Layout(**layout)
    sample = SampleSize.usual(65_536, 1024, 32, 128)
    found = rank_bytes(
        PRESETS["4b"], chosen, weights(PRESETS["4b"], chosen.tensor), sample, 1, 2, True
    )
    return found, {each.what: each.bytes for each in found}


def test_zero_divides_what_its_stage_says():
    """Rajbhandari et al. 2020, figure 1: 16 bytes per weight; 12, 14 or all are divided."""
    count = weights(PRESETS["4b"]).all
    for stage, narrow in ((1, 2), (2, 2), (3, 2 / 64)):
        what = of(replicas=64, zero=stage)[1]
        assert what["weights"] == pytest.approx(narrow * count, rel=1e-6)
        assert what["master weights"] == pytest.approx(4 * count / 64, rel=1e-6)
        assert what["optimizer: two moments"] == pytest.approx(8 * count / 64, rel=1e-6)
    assert of(replicas=64, zero=2)[1]["gradients, own"] == pytest.approx(2 * count / 64, rel=1e-6)
    assert of(replicas=64, zero=3)[1]["weights gathered"] == 2 * 10**9


def test_what_saves_memory_saves_it():
    plain = needed(of(zero=1, replicas=8)[0])
    for saving in (
        {"recompute": "layer"}, {"cache": 16_384}, {"documents": 8, "replicas": 1},
        {"tensor": 2, "replicas": 4},
    ):  # fmt: skip
        assert needed(of(**({"zero": 1, "replicas": 8} | saving))[0]) < plain, saving


def test_what_is_sent_away_is_on_the_host():
    here, _ = of(zero=3, replicas=8)
    away, _ = of(zero=3, replicas=8, offload="parameters")
    count = weights(PRESETS["4b"]).all
    assert needed(here, "host") == 0
    assert needed(away, "host") == pytest.approx((2 + 2 + 12 + 4) * count / 8, rel=1e-3)
    assert needed(here) - needed(away) > 14 * count / 8


def test_a_checkpoint_that_is_copied_is_on_the_host():
    """Narrow weights, an eighth of 12 bytes of states, and all weights in full precision."""
    layout, sample = Layout(zero=1, replicas=8), SampleSize.usual(65_536, 1024, 32, 128)
    held = weights(PRESETS["4b"])
    plain, copied = (
        rank_bytes(PRESETS["4b"], layout, held, sample, 1, 2, async_save=beside)
        for beside in (False, True)
    )
    assert needed(plain, "host") == 0 and needed(plain) == needed(copied)
    assert needed(copied, "host") == pytest.approx(12 / 8 * held.all, rel=1e-3)
    assert needed(copied, "writer") == (2 + 4) * held.all


def test_gradients_and_the_update_come_after_one_another():
    rows = [RankBytes("a", "held", 5), RankBytes("b", "backward", 7), RankBytes("c", "update", 3)]
    assert needed(rows) == 12 and needed([*rows, RankBytes("d", "held", 9, "host")]) == 12


def test_a_bucket_holds_the_largest_weight():
    assert reduce_bucket([10]) == 50_000_000 and reduce_bucket([10, 7 * 10**8]) == 7 * 10**8
