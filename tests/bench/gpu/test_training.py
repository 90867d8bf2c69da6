"""A training step's arithmetic is what torch counts; its rows are all there."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_train.bench.gpu import training
from msa_train.bench.gpu.sizes import TOY
from tests.bench.gpu.toy import toy_rows


@pytest.fixture
def alone(megatron, monkeypatch):
    """The process group is there already."""
    monkeypatch.setattr("msa_train.parallel.groups.start", lambda **_: None)


def test_a_step_is_measured_in_every_way(alone, monkeypatch):
    found, planned = toy_rows("train-0.6b", monkeypatch)
    assert found.keys() == planned.keys()
    profile = found["96 memory tokens, keeping everything: profile of a step"]
    assert 0 < len(profile.detail) <= training._TOP
    least, most = (
        found[f"192 memory tokens, {how}: peak memory"].floor
        for how in ("recomputing layers", "keeping everything")
    )
    assert training.state_bytes(TOY.small) / 1e9 < least < most


def test_its_products_are_those_of_the_model(megatron):
    torch.manual_seed(0)
    batch = training.random_batch(TOY.small, 96, 4, 24)
    model = megatron(TOY.small).train()
    with FlopCounterMode(display=False) as counted:
        losses = model(batch)
        (losses.lm + losses.router).backward()
    mm = counted.get_flop_counts()["Global"][torch.ops.aten.mm]
    expected = training.step_flops(TOY.small, batch)
    # Attention is not mm; router projections and the last router layer's own are not counted.
    assert 0.7 * mm < expected < 1.3 * mm


def test_the_states_of_a_model_take_sixteen_bytes_a_weight(megatron):
    weights = sum(p.numel() for p in megatron(TOY.small).parameters())
    assert training.state_bytes(TOY.small) == 16 * weights
