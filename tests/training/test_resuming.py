"""What a resumed run may have changed: each of all keys is refused by name, or applied and told."""

import copy
from pathlib import Path

import pytest

from msa_train.config import load_config, to_plain
from msa_train.errors import CheckpointError
from msa_train.training.resuming import Progress, changes
from tests.distributed.runs import settings

TARGET = Path("run/checkpoints/step-000000003")
IN_TWO = Progress.at(3, [2, 4], [2, 4])
STAGES = "[{name: one, steps: 2, lr: 1e-2}, {name: two, steps: 4, lr: 1e-3}]"
# Said once more, by hand: a key that is applied must be one that every later step obeys.
KEYS = """
output data.workers
training.device training.recompute training.gradient_cache_tokens training.betas
training.weight_decay training.zero_stage training.tensor_parallel training.sequence_parallel
training.deepspeed training.document_parallel training.pooled_states
training.clip training.log_every training.checkpoint_every training.keep_checkpoints
training.held_out_every training.held_out_samples training.best training.damaged_samples
training.shards training.loss_spike.policy training.loss_spike.spreads training.loss_spike.window
training.loss_spike.least training.loss_spike.limit training.loss_spike.factor
training.loss_spike.steps
training.cache_gb training.skipped_steps_limit training.timeout_s
training.async_save
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
LENGTHS = ("trains", "steps", "tokens", "epochs", "stop_after")
# These have tests of their own, trains in test_checkpoint.py.
OWN = {f"stages[{i}].{key}" for i in (0, 1) for key in LENGTHS}


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
    keys = set(leaves(to_plain(config))) - OWN
    assert len(keys) > 100 and keys >= set(APPLIED)
    for key in sorted(keys):
        try:
            (told,) = changes(config, with_another(config, key), TARGET, IN_TWO)
            assert key in APPLIED, f"{key} would be written down as used"
        except CheckpointError as error:
            assert key not in APPLIED, error
            told = str(error)
            assert "set it back" in told and str(TARGET) in told
        assert f"{key} (" in told and ", now another)" in told


def test_what_is_equal_is_no_change(config):
    assert changes(config, copy.deepcopy(config), TARGET, IN_TWO) == []


def test_all_refused_keys_are_named_at_once(config):
    other = load_config(settings("run", stages=STAGES, seed=3, model__layers=4))
    with pytest.raises(CheckpointError, match=r"model\.layers \(2, now 4\).*") as caught:
        changes(config, other, TARGET, IN_TWO)
    assert "seed (0, now 3)" in str(caught.value)


ONE, TWO = "name: one, lr: 1e-2", "name: two, lr: 1e-3"


def in_stages(*stages):
    each = ", ".join(f"{{{name}, {length}}}" for name, length in stages)
    return load_config(settings("run", stages=f"[{each}]"))


@pytest.mark.parametrize(
    ("done", "before", "now", "told"),
    [
        (3, ["steps: 4"], ["steps: 6"], ["stages[1].steps (4, now 6)"]),
        (6, ["steps: 4"], ["steps: 6"], ["stages[1].steps (4, now 6)"]),
        (3, ["tokens: 400"], ["tokens: 900"], ["stages[1].tokens (400, now 900)"]),
        (
            6,
            ["steps: 4, epochs: 2"],
            ["steps: 6, epochs: 3"],
            ["stages[1].steps (4, now 6)", "stages[1].epochs (2, now 3)"],
        ),
        (2, ["steps: 4, epochs: 2"], ["steps: 6, epochs: 2"], ["stages[1].steps (4, now 6)"]),
        (6, ["steps: 4"], ["steps: 4", "steps: 1"], ["stages[2] (not given, now two)"]),
    ],
)
def test_a_run_is_made_longer(done, before, now, told):
    old, new = (
        in_stages((ONE, "steps: 2"), *((TWO, length) for length in s)) for s in (before, now)
    )
    progress = Progress.at(done, [2, *[10] * len(now)], [2, 4])
    assert sorted(changes(old, new, TARGET, progress)) == sorted(told)


@pytest.mark.parametrize(
    ("done", "first", "second", "said"),
    [
        (3, "steps: 4", "steps: 4", r"stages\[0\]\.steps \(2, now 4\)"),
        (3, "steps: 2", "steps: 3", r"stages\[1\]\.steps \(4, now 3\)"),
        (3, "steps: 2", "tokens: 4000", r"stages\[1\]\.steps \(4, now None\)"),
        (3, "steps: 2", "steps: 4, epochs: 2", r"stages\[1\]\.epochs \(1, now 2\)"),
        (3, "steps: 2", "steps: 8, epochs: 4", r"stages\[1\]\.epochs \(1, now 4\)"),
    ],
)
def test_a_stage_cannot_grow_in_another_way(done, first, second, said):
    old = in_stages((ONE, "steps: 2"), (TWO, "steps: 4"))
    new = in_stages((ONE, first), (TWO, second))
    progress = Progress.at(done, [2, 10], [2, 4])
    with pytest.raises(CheckpointError, match=f"{said}.*a run is made longer by more steps"):
        changes(old, new, TARGET, progress)


def test_samples_read_several_times_stay_the_same_ones():
    old, new = (in_stages((ONE, f"steps: {n}, epochs: 2")) for n in (4, 6))
    with pytest.raises(CheckpointError, match="or epochs and steps alike"):
        changes(old, new, TARGET, Progress.at(1, [6], [4]))


def test_what_a_stage_had_must_be_known_before_it_grows():
    """An older checkpoint of a stage in tokens does not say how many samples that were."""
    old, new = (in_stages((ONE, f"tokens: {n}")) for n in (400, 600))
    with pytest.raises(CheckpointError, match=r"stages\[0\]\.tokens"):
        changes(old, new, TARGET, Progress.at(1, [6], []))


def test_progress_counts_steps():
    both = [True, True]
    assert Progress.at(1, [2, 4], [2, 4]) == Progress([True, False], [False, False], both, both)
    assert Progress.at(2, [2, 4], [2, 4]) == Progress([True, False], [True, False], both, both)
    late = [False, True]
    assert Progress.at(6, [2, 8], [2, 4]) == Progress(both, [True, False], late, late)
    assert Progress.at(4, [2, 1], [2, 4]).may_end == [False, False]


def drawing(weights="{niah: 1, pydocs: 1}", steps=4, **overrides):
    stages = "[{{name: one, steps: 2, lr: 1e-2}}, {{name: mixed, steps: {}, lr: 1e-3, "
    stages += "draws_from: [one], data: {{weights: {}}}}}]"
    banks = "{niah: {documents: 12, contexts: 6}, pydocs: {weight: 1}}"
    given = {"data__banks": banks, "stages": stages.format(steps, weights)} | overrides
    return load_config(settings("run", **given))


def test_a_stage_that_draws_may_draw_otherwise_until_it_begins():
    old, new = drawing(), drawing("{niah: 3}", 2)
    before, after = Progress.at(2, [2, 2], [2, 4]), Progress.at(3, [2, 2], [2, 4])
    told = changes(old, new, TARGET, before)
    assert [each.split(" ")[0] for each in told] == [
        "stages[1].steps", "stages[1].data.weights.niah", "stages[1].data.weights.pydocs",
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"stages\[1\]\.data\.weights\.niah \(1.0, now 3.0\)"):
        changes(old, new, TARGET, after)


def test_a_stage_ends_early_where_it_has_not_been_yet(config):
    def ending(end):
        stages = STAGES.replace("steps: 4", f"steps: 4, stop_after: {end}")
        return load_config(settings("run", stages=stages))

    for end in (1, 2, 3):
        new = ending(end)
        (told,) = changes(config, new, TARGET, Progress.at(3, [2, end], [2, 4]))
        assert told == f"stages[1].stop_after (None, now {end})"
    new = ending(1)
    with pytest.raises(CheckpointError, match=r"stages\[1\]\.stop_after \(None, now 1\)"):
        changes(config, new, TARGET, Progress.at(4, [2, 1], [2, 4]))
    short = STAGES.replace("steps: 2", "steps: 2, stop_after: 1")
    with pytest.raises(CheckpointError, match=r"stages\[0\]\.stop_after"):
        changes(
            config,
            load_config(settings("run", stages=short)),
            TARGET,
            Progress.at(3, [1, 4], [2, 4]),
        )
