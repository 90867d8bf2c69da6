"""Drawn steps: the plan's where nothing varies, and those of ranks with a clock each elsewhere."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.shards.manifest import INDEX_DTYPE
from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.hardware import parse_cluster
from msa_train.training.planner import simulation
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.plan import Assumed, plan
from msa_train.training.planner.simulation import (
    Pieces,
    deaths,
    sample_lengths,
    simulate,
    step_seconds,
    waits_each_sample,
)
from msa_train.training.planner.sizes import Given, stage_sizes
from tests.distributed.ranks import run_ranks
from tests.training.planner.observed import CACHE, layout_of, meetings

CONFIG = load_config(["--config", "configs/train/msa-4b.yaml", "--training.batch_samples", "64"])
CLUSTER = parse_cluster("16xH100-80GB")
STAGES, _ = stage_sizes(CONFIG, Given())
LAYOUTS = [
    Layout(replicas=16, zero=1), Layout(replicas=16, zero=2), Layout(replicas=16, zero=3),
    Layout(documents=2, replicas=8, zero=1), Layout(replicas=16, zero=1, cache=4096),
    Layout(documents=4, replicas=4, zero=3),
]  # fmt: skip


def of(layout, cluster=CLUSTER):
    return plan(CONFIG, layout, cluster, STAGES, Assumed())


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.words)
def test_equal_samples_without_latency_are_the_plan(layout):
    found = of(layout)
    drawn = simulate(found, CONFIG, Pieces(latency_us=0, drawn_steps=5))
    for seconds in (drawn.step, drawn.step_low, drawn.step_high, drawn.total):
        assert seconds == pytest.approx(found.longest.seconds)
    assert drawn.goodput == 1 and sum(drawn.parts.values()) == pytest.approx(drawn.total)
    useful = found.longest.work.useful / found.longest.work.total
    assert drawn.parts["useful arithmetic"] == pytest.approx(useful * found.longest.computing)


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.words)
def test_ranks_wait_for_one_another_as_with_a_clock_each(layout):
    found = of(layout, replace(CLUSTER, network=2e9))
    stage = found.longest
    times = np.random.default_rng(0).uniform(0.5, 1.5, (7, stage.samples, layout.replicas))
    drawn = sum(step_seconds(found, stage, times, Pieces(latency_us=50)).values())
    messages = sum(each.hops for each in stage.traffic if not each.hidden) * 50e-6
    for step, seconds in zip(times, drawn, strict=True):
        clocks = [0.0] * layout.replicas
        for sample in step:
            clocks = [at + own for at, own in zip(clocks, sample, strict=True)]
            if waits_each_sample(layout):
                clocks = [max(clocks)] * layout.replicas
        at = max(clocks)
        hidden = sum(each.seconds(found.cluster) for each in stage.traffic if each.hidden)
        open_ = sum(each.seconds(found.cluster) for each in stage.traffic if not each.hidden)
        assert seconds == pytest.approx(max(at, hidden) + open_ + messages + stage.updating)


@pytest.mark.slow
def test_ranks_meet_in_a_sample_where_they_are_drawn_to_meet():
    runs = {f"ZeRO-{stage}": {"zero_stage": stage} for stage in (1, 2, 3)}
    runs["cached"] = {"zero_stage": 1, "gradient_cache_tokens": CACHE}
    for met in run_ranks(2, meetings, runs, timeout_s=500):
        for name, settings in runs.items():
            assert bool(met[name]) == waits_each_sample(layout_of(1, settings)), name


def test_a_slow_loader_sets_the_pace():
    found = of(LAYOUTS[0])
    slow = simulate(found, CONFIG, Pieces(loaded_per_s=0.1, drawn_steps=3))
    assert slow.step == pytest.approx(found.longest.samples / 0.1)
    assert slow.first == "waiting for data"
    fast = simulate(found, CONFIG, Pieces(loaded_per_s=1e6, drawn_steps=3))
    assert fast.parts["waiting for data"] == 0


def test_what_deaths_take_is_what_renewals_take_on_average():
    """Expected time to pass L seconds without a death at the rate r: (exp(r L) - 1) (1 / r + R)."""
    found, every = of(LAYOUTS[0]), 500
    pieces = Pieces(deaths_per_node_day=3, restart_s=200, save_stall_s=7)
    lost, goodput = deaths(found, 50_000, 2.0, every, pieces, np.random.default_rng(0))
    rate, between = 2 * 3 / 86_400, every * 2.0 + 7
    passed = (math.exp(rate * between) - 1) * (1 / rate + 200)
    assert lost == pytest.approx((passed - between) / every, rel=0.05)
    assert goodput.mean() == pytest.approx(every * 2.0 / passed, rel=0.01)
    calm, whole = deaths(found, 1000, 2.0, every, Pieces(), np.random.default_rng(0))
    assert calm == 0 and (whole == 1).all()
    with pytest.raises(ConfigError, match="never reach the next; give a lower"):
        deaths(found, 1000, 2.0, every, Pieces(deaths_per_node_day=10_000), None)


def test_lengths_are_as_spread_as_is_said_and_the_same_again():
    found = of(LAYOUTS[0])
    lengths, said = sample_lengths(CONFIG, 0, Pieces(sample_spread=0.5), np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(1) and lengths.std() == pytest.approx(0.5, rel=0.05)
    assert "spread 0.5" in said
    spread = [simulate(found, CONFIG, Pieces(sample_spread=0.5, drawn_steps=50)) for _ in "ab"]
    assert spread[0] == spread[1] and spread[0].first == "waiting for longer samples"
    other = simulate(found, CONFIG, Pieces(sample_spread=0.5, drawn_steps=50, draw_seed=1))
    assert other.step != spread[0].step


def test_lengths_are_those_of_the_shards_where_they_are_built(monkeypatch):
    rows = [(0, 0, 0, 100, 0), (0, 0, 0, 300, 0), (0, 1, 0, 7, 0)]
    manifest = SimpleNamespace(samples=len(rows))
    monkeypatch.setattr(simulation, "manifest_of", lambda config: manifest)
    monkeypatch.setattr(simulation, "load_index", lambda *_: np.array(rows, INDEX_DTYPE))
    lengths, said = sample_lengths(CONFIG, 0, Pieces(), None)
    assert list(lengths) == [0.5, 1.5] and "the 2 of the shards" in said
    given, _ = sample_lengths(CONFIG, 0, Pieces(sample_spread=0.0), None)
    assert list(given) == [1]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ({"latency_us": -1}, "latency-us is -1: give 0 or more"),
        ({"sample_spread": math.nan}, "sample-spread is nan"),
        ({"drawn_steps": 0}, "drawn-steps is 0: give more"),
        ({"loaded_per_s": 0.0}, "loaded-per-s is 0: give more"),
    ],
)
def test_a_piece_that_cannot_be_is_refused(pieces, said):
    with pytest.raises(ConfigError, match=said):
        Pieces(**pieces)
