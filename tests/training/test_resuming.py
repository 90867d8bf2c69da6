"""What a resumed run may have changed: each of all keys is refused by name, or applied and told."""

import copy
from pathlib import Path

import pytest

from msa_train.config import load_config, to_plain
from msa_train.errors import CheckpointError
from msa_train.training.resuming import changes, stages_over
from tests.distributed.runs import settings

TARGET = Path("run/checkpoints/step-000000003")
STAGES = "[{name: one, steps: 2, lr: 1e-2}, {name: two, steps: 4, lr: 1e-3}]"
# Said once more, by hand: a key that is applied must be one that every later step obeys.
KEYS = """
output data.workers
training.device training.recompute training.gradient_cache_tokens training.betas
training.weight_decay
training.clip training.log_every training.checkpoint_every training.keep_checkpoints
training.held_out_every training.held_out_samples training.damaged_samples training.shards
training.cache_gb training.skipped_steps_limit training.timeout_s
training.wandb.mode training.wandb.project training.wandb.name training.wandb.group
training.wandb.tags training.wandb.notes training.wandb.artifacts training.wandb.alert_spreads
training.wandb.init_timeout_s training.wandb.finish_timeout_s
evaluation.memory_tokens evaluation.niah_tasks evaluation.questions evaluation.text_questions
evaluation.pydocs_questions evaluation.resamples evaluation.batch_contexts evaluation.workers
evaluation.seed
stages[0].name stages[1].name stages[1].lr stages[1].final_lr stages[1].warmup_steps
stages[1].lm_weight stages[1].router_weight stages[1].queue_documents
"""
APPLIED = KEYS.split()
TRAINS = {"stages[0].trains", "stages[1].trains"}  # has its own test in test_checkpoint.py


def leaves(value, where=""):
    """Dotted names of all settings, with lists of stages as stages[0].lr."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, f"{where}.{key}".lstrip("."))
    elif where == "stages":
        for i, stage in enumerate(value):
            yield from leaves(stage, f"stages[{i}]")
    else:
        yield where


def with_another(config, key):
    """A copy in which one setting is another, whatever the checks of settings say."""
    config = copy.deepcopy(config)
    holder = config
    *path, last = key.replace("[", ".").replace("]", "").split(".")
    for name in path:
        if name.isdigit():
            holder = holder[int(name)]
        else:
            holder = holder[name] if isinstance(holder, dict) else getattr(holder, name)
    if isinstance(holder, dict):
        holder[last] = "another"
    else:
        object.__setattr__(holder, last, "another")
    return config


@pytest.fixture(scope="module")
def config():
    return load_config(settings("run", stages=STAGES))


def test_every_key_is_refused_by_name_or_applied_and_told(config):
    keys = set(leaves(to_plain(config))) - TRAINS
    assert len(keys) > 100 and keys >= set(APPLIED)
    ends = stages_over([2, 4], 3)
    for key in sorted(keys):
        try:
            (told,) = changes(config, with_another(config, key), TARGET, ends)
            assert key in APPLIED, f"{key} would be written down as used"
        except CheckpointError as error:
            assert key not in APPLIED, error
            told = str(error)
            assert "set it back" in told and str(TARGET) in told
        assert f"{key} (" in told and ", now another)" in told


def test_what_is_equal_is_no_change(config):
    assert changes(config, copy.deepcopy(config), TARGET, stages_over([2, 4], 3)) == []


def test_all_refused_keys_are_named_at_once(config):
    other = load_config(settings("run", stages=STAGES, seed=3, model__layers=4))
    with pytest.raises(CheckpointError, match=r"model\.layers \(2, now 4\).*") as caught:
        changes(config, other, TARGET, stages_over([2, 4], 3))
    assert "seed (0, now 3)" in str(caught.value)


def test_a_further_stage_is_refused(config):
    more = STAGES[:-1] + ", {name: three, steps: 1, lr: 1e-3}]"
    with pytest.raises(CheckpointError, match=r"another stages\[2\] \(not given, now"):
        changes(config, load_config(settings("run", stages=more)), TARGET, [True, False, False])


def test_a_stage_is_over_with_its_last_step():
    assert stages_over([2, 4], 1) == [False, False]
    assert stages_over([2, 4], 2) == [True, False]
    assert stages_over([2, 4], 6) == [True, True]
