"""configs/backbones: the publication's four stages on other models than its own."""

from pathlib import Path

import pytest

from msa_train.config import load_config
from msa_train.hardware import parse_cluster
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.plan import Assumed, plan
from msa_train.training.planner.sizes import Given, stage_sizes
from msa_train.training.planner.weights import parts, weights

FOLDER = Path("configs/backbones")
# Parameters of the safetensors files on Hugging Face, a tied head counted once; and cards on which
# the settings' own layout fits.
KNOWN = {
    None: (4_022_468_096, "8xH100-80GB"),
    "qwen3-0.6b": (596_049_920, "8xRTX-4090-24GB"),
    "qwen3-1.7b": (1_720_574_976, "8xL40S-48GB"),
    "qwen3-8b": (8_190_735_360, "8xH100-80GB"),
    "smollm2-135m": (134_515_008, "2xL4-24GB"),
}


def config_of(name, run="msa-4b"):
    over = [] if name is None else ["--config", f"{FOLDER}/{name}.yaml"]
    return load_config(["--config", f"configs/train/{run}.yaml", *over])


def test_every_backbone_is_known():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KNOWN) - {None}


@pytest.mark.parametrize("name", KNOWN)
def test_a_backbone_has_its_published_size_and_fits(name):
    config, (count, cards) = config_of(name), KNOWN[name]
    found = parts(weights(config.model))
    assert sum(found.values()) - found["router"] == count
    cluster = parse_cluster(cards)
    stages, _ = stage_sizes(config, Given())
    planned = plan(config, Layout.of(config, cluster.cards), cluster, stages, Assumed())
    assert planned.lacking is None


@pytest.mark.parametrize("run", ["msa-4b", "paper-mixture"])
@pytest.mark.parametrize("name", KNOWN)
def test_all_have_the_stages_and_data_of_the_run(run, name):
    own, found = config_of(None, run), config_of(name, run)
    assert found.stages == own.stages and found.data.datasets == own.data.datasets
    assert found.training.start_from == found.data.tokenizer.path
    assert name is None or found.training.start_from == f"backbones/{name}"
