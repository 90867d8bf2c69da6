"""Loss spikes: the rule, against one written out; and runs that meet one under each policy."""

import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.shards.build import build_shards
from msa_train.config import LossSpikeConfig, load_config
from msa_train.errors import DivergedError
from msa_train.stages import Schedule, Stage
from msa_train.training.spikes import LossSpikes
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import _stop_after, logged, settings

SCHEDULE = Schedule((Stage("a", 1.0, 40), Stage("b", 1.0, 60)), (40, 60))


def test_the_rule_is_the_one_written_down():
    draw = random.Random(0)
    spikes = LossSpikes(LossSpikeConfig("skip", 4.0, window=9, least=5, limit=99), SCHEDULE)
    good, found = [], 0
    for step in range(100):
        if step == 40:
            good = []
        loss = draw.choice([math.inf, math.nan, 9.0]) if draw.random() < 0.2 else draw.gauss(2, 0.2)
        last = np.array(good[-9:])
        high = False
        if len(good) >= 5 and math.isfinite(loss):
            middle = np.median(last)
            spread = max(np.median(abs(last - middle)), 0.01 * middle)
            high = loss > middle + 4 * spread
        assert (spikes.look(step, loss) is not None) == spikes.now == high, step
        found += high
        good += [] if high or not math.isfinite(loss) else [loss]
    assert found > 5 and spikes.numbers(99) == {"loss_spikes": found}


def test_a_rate_is_lowered_for_some_steps_and_to_the_end_of_its_stage():
    for steps, ends in ((3, 15), (None, 40)):
        spikes = LossSpikes(LossSpikeConfig("lower", least=5, steps=steps), SCHEDULE)
        for step in range(13):
            spikes.look(step, 9.0 if step == 12 else 2.0)
        factors = [spikes.rate_factor(step) for step in range(12, 60)]
        assert factors == [0.5] * (ends - 12) + [1.0] * (60 - ends)
        again = LossSpikes(LossSpikeConfig("lower", least=5, steps=steps), SCHEDULE)
        again.load_state_dict(json.loads(json.dumps(spikes.state_dict())))
        spikes.look(13, 9.0)
        again.look(13, 9.0)
        assert again.rate_factor(14) == spikes.rate_factor(14) == 0.25


def test_only_a_step_that_stands_ends_a_row_of_rolled_back_ones():
    spikes = LossSpikes(LossSpikeConfig("roll_back", least=5, limit=2), SCHEDULE)
    for step in range(10):
        spikes.look(step, 2.0)
    spikes.look(10, 9.0)
    spikes.saved()  # the weights of the checkpoint that it went back to, once more
    spikes.look(11, 9.0)
    assert spikes.too_many
    spikes.look(12, 2.0)
    spikes.saved()
    assert not spikes.too_many


def test_going_back_into_the_stage_before_ends_no_row():
    spikes = LossSpikes(LossSpikeConfig("roll_back", least=5, limit=2), SCHEDULE)
    for step in range(40):
        spikes.look(step, 2.0)
    last = spikes.state_dict()
    for step in range(40, 60):
        high = step in (48, 56)
        assert bool(spikes.look(step, 9.0 if high else 2.0)) == high
        assert spikes.too_many == (step >= 56)
        if high:
            spikes.roll_back(last, step - 40)


def train_all(runs, poisoned=(5,)):
    """On each rank: (codes, or what an error said) of runs whose losses are too high at some
    steps."""
    from msa_train.parallel import groups
    from msa_train.training.last_words import LastWords
    from msa_train.training.trainer import Trainer

    groups.start(1, timeout_s=120)
    codes = []
    for arguments, stop_after in runs:
        config = load_config(arguments)
        config.path.mkdir(parents=True, exist_ok=True)
        for resume in (False, True)[: 1 + bool(stop_after)]:
            trainer = Trainer(config, resume, LastWords(config.path))
            poison(trainer, poisoned)
            if stop_after and not resume:
                _stop_after(trainer, stop_after)
            try:
                codes.append(trainer.run())
            except DivergedError as error:
                codes.append(str(error))
            trainer.close()
    return codes


def poison(trainer, steps):
    def scale(module, given, losses):
        if torch.is_grad_enabled() and trainer.step + 1 in steps and hasattr(losses, "lm"):
            losses.lm = losses.lm * 50.0
        return losses

    trainer.engine.model.register_forward_hook(scale)


STAGES = "[{name: main, steps: 8, lr: 1e-2, router_weight: 1}]"


def arguments(folder, shards, policy, **more):
    spike = {"policy": policy, "least": 2, "steps": 2, **more.pop("spike", {})}
    own = {"training__checkpoint_every": 2, "training__keep_checkpoints": 9}
    own |= {f"training__loss_spike__{key}": value for key, value in spike.items()}
    return settings(folder, training__shards=shards, stages=STAGES, **(own | more))


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    build_shards(load_config(settings("unused", stages=STAGES)).corpus, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def trained(long_shards, tmp_path_factory):
    """Step 5 of 8 spikes, checkpoints are at 2, 4, 6, 8."""
    root = tmp_path_factory.mktemp("spikes")
    policies = ("skip", "roll_back", "lower")
    runs = [(arguments(root / each, long_shards, each), None) for each in policies]
    runs += [(arguments(root / f"stopped-{p}", long_shards, p), 6) for p in policies]
    runs.append((arguments(root / "many", long_shards, "skip", spike={"limit": 1}), None))
    return root, run_ranks(1, train_all, runs)[0]


def weights(root, name, step):
    return load_file(root / name / "checkpoints" / f"step-{step:09d}" / "weights-tp0.safetensors")


def test_each_policy_counts_what_it_does(trained):
    root, codes = trained
    assert codes[:-1] == [0, 0, 0, 143, 0, 143, 0, 143, 0]
    rows = {name: logged(root / name) for name in ("skip", "roll_back", "lower")}
    for each in rows.values():
        assert [row["loss_spikes"] for row in each] == [0] * 4 + [1] * 4
    assert [row["skipped_steps"] for row in rows["skip"]] == [0] * 4 + [1] * 4
    assert [row["rolled_back_steps"] for row in rows["roll_back"]] == [0] * 4 + [1] * 4
    assert [row["lr"] for row in rows["lower"]] == [1e-2] * 4 + [5e-3] * 2 + [1e-2] * 2
    assert [row["lr_factor"] for row in rows["lower"]] == [1.0] * 4 + [0.5] * 2 + [1.0] * 2
    assert rows["skip"][5]["loss/lm"] == rows["roll_back"][5]["loss/lm"], "from the same weights"


@pytest.mark.parametrize("policy", ["skip", "roll_back", "lower"])
def test_a_run_stopped_after_a_spike_goes_on_bit_for_bit(trained, policy):
    root, _ = trained
    whole = weights(root, policy, 8)
    for name, weight in weights(root, f"stopped-{policy}", 8).items():
        assert torch.equal(weight, whole[name]), name


def test_too_many_spikes_end_the_run(trained):
    root, codes = trained
    assert "step 5: the loss is" in codes[-1] and "training.loss_spike.limit (1)" in codes[-1]
    assert f"the last good checkpoint is {root / 'many'}" in codes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_do_the_same_under_every_zero_stage(trained, long_shards, tmp_path, stage):
    root, _ = trained
    policies = ("skip", "roll_back", "lower")
    more = {"training__zero_stage": stage}
    runs = [(arguments(tmp_path / p, long_shards, p, **more), None) for p in policies]
    assert run_ranks(2, train_all, runs)[0] == [0, 0, 0]
    for policy in policies:
        for ours, alone in zip(logged(tmp_path / policy), logged(root / policy), strict=True):
            assert ours["loss/lm"] == pytest.approx(alone["loss/lm"], rel=1e-4)
            assert ours["loss_spikes"] == alone["loss_spikes"] and ours["lr"] == alone["lr"]
