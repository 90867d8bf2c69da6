"""A run's plan: its arithmetic beside numbers worked out by hand, its layouts' order, and the plans
of the backbones in configs/backbones."""

from dataclasses import replace
from pathlib import Path

import pytest

from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.hardware import parse_cluster
from msa_train.training import swap_files
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.memory import needed
from msa_train.training.planner.plan import Assumed, plan, ranked
from msa_train.training.planner.sizes import Given, stage_sizes
from msa_train.training.planner.weights import parts, weights

CONFIG = load_config(["--config", "configs/train/msa-4b.yaml", "--training.batch_samples", "64"])
CLUSTER = parse_cluster("64xH100-80GB")
STAGES, _ = stage_sizes(CONFIG, Given())


def of(layout, **assumed):
    return plan(CONFIG, layout, CLUSTER, STAGES, Assumed(**assumed))


def test_a_step_is_as_long_as_its_arithmetic_and_what_it_waits_for():
    found = of(Layout(replicas=64, zero=1), utilisation=0.5, price_per_gpu_hour=3.0)
    stage = found.longest
    assert stage.stage.name == "main" and stage.tokens == 64 * 14_000
    documents = 6 * 14_000 * (34 * 100e6 + 0.2e9)  # about: layers below the last router layer
    assert stage.work.documents == pytest.approx(documents, rel=0.1)
    assert stage.computing == pytest.approx(stage.work.total / 989e12 / 0.5)
    count = sum(found.parameters.values())
    ring = 63 / 64 * 2 * count
    waited = (2 * ring + ring) / 400e9  # gradients summed, weights gathered, over eight cards each
    assert stage.sending == pytest.approx(waited, rel=1e-3)
    assert stage.seconds == stage.computing + stage.updating + stage.sending
    assert found.model_utilisation == pytest.approx(stage.work.useful / stage.seconds / 989e12)
    assert found.seconds() == sum(each.total for each in found.stages)
    assert found.money() == pytest.approx(found.seconds() / 3600 * 64 * 3)
    assert found.seconds(2 * found.tokens) == pytest.approx(2 * found.seconds())


def test_ranks_that_share_a_sample_do_as_much_together():
    one, eight = of(Layout(replicas=64)), of(Layout(documents=8, replicas=8))
    assert one.longest.work.total == pytest.approx(eight.longest.work.total, rel=1e-6)
    assert eight.need < one.need and eight.longest.sending > one.longest.sending


def test_every_rank_updates_what_it_has_the_states_of():
    whole, shared = of(Layout(replicas=64, zero=0)), of(Layout(replicas=64, zero=1))
    assert whole.longest.updating == pytest.approx(64 * shared.longest.updating)


def test_gathering_hides_behind_arithmetic_and_no_further():
    slow = replace(CLUSTER, network=0.01e9)
    found = plan(CONFIG, Layout(replicas=64, zero=3), slow, STAGES, Assumed())
    stage = found.longest
    sent = sum(each.seconds(slow) for each in stage.traffic)
    assert stage.seconds == pytest.approx(stage.updating + max(sent, stage.computing))
    assert of(Layout(replicas=64, zero=3)).longest.sending == 0


def test_layouts_that_fit_are_ranked_and_others_told_apart():
    found = ranked(CONFIG, CLUSTER, STAGES, Assumed())
    times = [each.seconds() for each in found.plans]
    assert times == sorted(times) and all(each.lacking is None for each in found.plans)
    assert "more than a card's memory" in found.refused
    few = ranked(load_config(["--config", "configs/train/msa-4b.yaml"]), CLUSTER, STAGES, Assumed())
    [said] = [reason for reason in few.refused if "cannot share" in reason]
    assert all(each.replicas == 64 for each in few.refused[said])


def test_pooled_states_are_sharded_where_gathered_they_do_not_fit():
    """And nowhere else, as what their exchanges send is not counted."""
    given = ["--config", "configs/train/paper-mixture.yaml", "--training.batch_samples", "1"]
    config = load_config(given)
    bank = Given(memory_tokens=10_485_760, document_tokens=140, contexts=32)
    stages, _ = stage_sizes(config, bank)
    found = ranked(config, parse_cluster("8xH100-80GB"), stages, Assumed())
    sharded = [each for each in found.plans if each.layout.sharded]
    gathered = {each.layout for each in found.plans if not each.layout.sharded}
    assert sharded and gathered
    for each in sharded:
        assert replace(each.layout, sharded=False) not in gathered
        assert any("exchanges" in note for note in each.notes)


def test_what_lacks_is_said():
    small = replace(CLUSTER, card=replace(CLUSTER.card, bytes=16 * 10**9))
    found = plan(CONFIG, Layout(replicas=64, zero=1), small, STAGES, Assumed())
    assert found.lacking.startswith("each card needs ") and "has 16.00 GB" in found.lacking
    away = Layout(replicas=64, zero=3, recompute="layer", offload="optimizer")
    host = plan(CONFIG, away, CLUSTER, STAGES, Assumed(host_ram=10**9))
    assert host.lacking.startswith("each machine needs ")
    assert plan(CONFIG, away, CLUSTER, STAGES, Assumed(host_ram=10**12)).lacking is None


def test_only_who_writes_the_weights_has_a_copy_of_them():
    config = replace(CONFIG, training=replace(CONFIG.training, async_save=True))
    count = weights(config.model).all
    for layout, of_each, of_writers in (
        (Layout(replicas=64, zero=1), 12 / 64, 2 + 4),
        (Layout(replicas=64, zero=3), (2 + 12) / 64, 4),
        (Layout(replicas=64, zero=0), 0, 2 + 8 + 4),
    ):
        found = plan(config, layout, CLUSTER, STAGES, Assumed())
        assert found.host_need == pytest.approx((8 * of_each + of_writers) * count, rel=0.01)


def test_sizes_that_the_plan_does_not_look_at_are_named():
    given = {"zero_optimization": {"reduce_bucket_size": 10**6, "overlap_comm": True}}
    training = replace(CONFIG.training, zero_stage=3, deepspeed=given)
    config = replace(CONFIG, training=training)
    found = plan(config, Layout.of(config, 64), CLUSTER, STAGES, Assumed())
    said = [note for note in found.notes if "is not looked at" in note]
    assert len(said) == 1 and "reduce_bucket_size" in said[0]


def test_what_goes_to_nvme_is_in_files_and_zero_3_alone_sends_it_there():
    zero = "{zero_optimization: {offload_optimizer: {device: nvme, nvme_path: /scratch}}}"
    given = ["--config", "configs/train/msa-4b.yaml", "--training.deepspeed", zero]
    config = load_config([*given, "--training.zero_stage", "3"])
    cluster = parse_cluster("8xH100-80GB")
    fitting = ranked(config, cluster, STAGES, Assumed()).plans
    assert {each.layout.zero for each in fitting} == {3}
    found = plan(config, Layout.of(config, 8), cluster, STAGES, Assumed())
    learning = weights(config.model).learning
    files = needed(found.fullest.bytes, "nvme")
    assert files == pytest.approx(swap_files.BYTES * learning / 8, rel=1e-6)
    assert any("files" in each for each in found.notes)


@pytest.mark.parametrize("value", [0, 1.5, float("nan")])
def test_a_utilisation_is_a_share(value):
    with pytest.raises(ConfigError, match="utilisation is"):
        Assumed(utilisation=value)
    with pytest.raises(ConfigError, match="price-per-gpu-hour is -1"):
        Assumed(price_per_gpu_hour=-1)


def test_everything_is_told_to_programs():
    found = of(Layout(replicas=64, zero=1), price_per_gpu_hour=3.0).to_json(158_950_000_000)
    assert found["fits"] is False and found["need"] > found["have"] and "card" in found["lacking"]
    assert found["tokens"] == 158_950_000_000 and found["days"] > 1 and found["money"] > 0
    assert {row["kind"] for row in found["stages"][0]["traffic"]} == {"gradients", "weights"}
    assert found["stages"][0]["flops"]["total"] > found["stages"][0]["flops"]["recompute"]


BACKBONES = Path("configs/backbones")
# Parameters of the safetensors files on Hugging Face, a tied head counted once; and cards on which
# the settings' own layout fits.
PUBLISHED = {
    None: (4_022_468_096, "8xH100-80GB"),
    "qwen3-0.6b": (596_049_920, "8xRTX-4090-24GB"),
    "qwen3-1.7b": (1_720_574_976, "8xL40S-48GB"),
    "qwen3-8b": (8_190_735_360, "8xH100-80GB"),
    "smollm2-135m": (134_515_008, "2xL4-24GB"),
}


def config_of(name, run="msa-4b"):
    over = [] if name is None else ["--config", f"{BACKBONES}/{name}.yaml"]
    return load_config(["--config", f"configs/train/{run}.yaml", *over])


def test_every_backbone_is_known():
    assert {path.stem for path in BACKBONES.glob("*.yaml")} == set(PUBLISHED) - {None}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_has_its_published_size_and_fits(name):
    config, (count, cards) = config_of(name), PUBLISHED[name]
    found = parts(weights(config.model))
    assert sum(found.values()) - found["router"] == count
    cluster = parse_cluster(cards)
    stages, _ = stage_sizes(config, Given())
    planned = plan(config, Layout.of(config, cluster.cards), cluster, stages, Assumed())
    assert planned.lacking is None


@pytest.mark.parametrize("run", ["msa-4b", "paper-mixture"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_have_the_stages_and_data_of_the_run(run, name):
    own, found = config_of(None, run), config_of(name, run)
    assert found.stages == own.stages and found.data.datasets == own.data.datasets
    assert found.training.start_from == found.data.tokenizer.path
    assert name is None or found.training.start_from == f"backbones/{name}"
