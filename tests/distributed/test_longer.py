"""A finished run is made longer: a further stage, or more steps, with the optimizer kept."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from msa_train.cli import main
from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.training.data import open_shards
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import go_on, logged, settings

ONE = "{{name: one, steps: {}, lr: 1e-2, router_weight: 1}}"
ENDED = ONE.replace("steps: {}", "steps: {}, stop_after: 1")
MIXED = (
    "{name: mixed, steps: 3, lr: 3e-3, router_weight: 1, draws_from: [one], "
    "data: {weights: {niah: 1}}}"
)
TWO = "{name: two, steps: 2, lr: 3e-3, router_weight: 1, data: {document_tokens: 20}}"


def arguments(root, name, steps=2, more=(), **overrides):
    stages = f"[{', '.join([ONE.format(steps), *more])}]"
    return settings(root / name, stages=stages, data__workers=1, **overrides)


def ended(root, name):
    """The first stage ended after a step, and one that draws from its shards."""
    stages = f"[{ENDED.format(2)}, {MIXED}]"
    return settings(root / name, stages=stages, data__workers=1)


def build(given):
    config = load_config(given)
    config.save(config.path.with_suffix(".yaml"))
    assert main(["data", "build", "--config", str(config.path.with_suffix(".yaml"))]) == 0


def train(*runs):
    run_ranks(1, go_on, [(given, None) for given in runs])


def weights(root, name, step=4):
    return load_file(root / name / "checkpoints" / f"step-{step:09d}" / "weights-tp0.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs `staged` and `grown` of two steps, made two steps longer, and `always`, which had both
    stages from its start."""
    root = tmp_path_factory.mktemp("longer")
    always = arguments(root, "always", more=[TWO])
    short = arguments(root, "staged")
    build(always)
    build(short)
    train(always, short)
    shutil.copytree(root / "staged", root / "grown")
    shutil.copytree(root / "staged" / "shards", root / "mixed" / "shards")
    shutil.copytree(root / "staged" / "shards", root / "mixed-at-once" / "shards")
    first = arguments(root, "mixed")
    mixed, at_once = ended(root, "mixed"), ended(root, "mixed-at-once")
    run_ranks(1, go_on, [(first, 1), (mixed, 2), (mixed, None), (at_once, None)])
    long = arguments(root, "staged", more=[TWO]), arguments(root, "grown", steps=4)
    for given in long:
        build(given)
    train(*long)
    return root


def test_a_further_stage_is_as_if_it_had_always_been_there(root):
    expected = weights(root, "always")
    for name, weight in weights(root, "staged").items():
        assert torch.equal(weight, expected[name]), name
    rows, whole = logged(root / "staged"), logged(root / "always")
    assert [row["loss/lm"] for row in rows] == [row["loss/lm"] for row in whole]
    shards = [root / name / "shards" / "shard-000000.tar" for name in ("staged", "always")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_more_steps_read_what_was_not_read_yet(root):
    """The first two steps are those of the short run, and the optimizer counts on."""
    rows = logged(root / "grown")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss/lm"] for row in rows[:2]] == [
        r["loss/lm"] for r in logged(root / "staged")[:2]
    ]
    folder = root / "grown" / "checkpoints" / "step-000000004"
    state = json.loads((folder / "state.json").read_text())
    assert state["loader"] == {"consumed": 8, "parts": [[4, 4]]}
    saved = torch.load(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", weights_only=False)
    states = saved["optimizer_state_dict"]["base_optimizer_state"]["state"].values()
    assert {float(each["step"]) for each in states} == {4}


def test_shards_that_are_too_short_are_said_to_be_that(root, tmp_path):
    for name, there in (("grown", {}), ("other", {"training__shards": root / "grown" / "shards"})):
        config = load_config(arguments(root, name, steps=6, **there))
        with pytest.raises(ConfigError, match="make it longer with `msa data build`"):
            open_shards(config)


def test_a_stage_of_other_weights_draws_from_shards_that_stay(root):
    """Resumed in its middle, and begun by ending a stage early: as if at once."""
    rows, whole = logged(root / "mixed"), logged(root / "mixed-at-once")
    assert [row["loss/lm"] for row in rows] == [row["loss/lm"] for row in whole]
    assert [row["stage"] for row in rows] == [0, 1, 1, 1]
    for name, weight in weights(root, "mixed-at-once").items():
        assert torch.equal(weight, weights(root, "mixed")[name]), name
    build(ended(root, "mixed"))  # finds them there already
    shards = [root / name / "shards" / "shard-000000.tar" for name in ("staged", "mixed")]
    assert shards[0].stat().st_size > shards[1].stat().st_size  # the one grew, the other did not
