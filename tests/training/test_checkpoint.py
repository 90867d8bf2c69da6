"""Checkpoints: what is saved comes back, and what would not continue the same run is refused."""

import dataclasses
import json

import pytest
import torch

from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.errors import CheckpointError
from msa_train.training import checkpoint
from msa_train.training.best import Best
from tests.distributed.runs import settings
from tests.memory.tiny import tiny_tokenizer

STATE = checkpoint.RunState(
    2, {"consumed": 4, "parts": [[8]]}, "run-id", 1, 0, {"held_out/a/lm": 2.5}
)


class Queue:
    def __init__(self, keys):
        self.keys = keys

    def state_dict(self):
        return {"keys": self.keys}

    def __len__(self):
        return len(self.keys)

    def load_state_dict(self, state):
        self.keys = state["keys"]

    def merge(self, states):
        self.merged = len(states)


class FileEngine:
    """An engine whose state is a file."""

    skipped, device = False, torch.device("cpu")

    def __init__(self, value):
        self.value, self.queue = value, Queue(torch.full((2,), float(value)))
        self.model = self

    def save(self, folder, tag, write):
        (folder / tag / "engine").write_text(str(self.value))

    def load(self, folder, tag):
        self.value = int((folder / tag / "engine").read_text())

    learned = ("weight",)

    def adopt(self, stored):
        assert stored.learned == self.learned
        self.value = "adopted"

    def keep(self, read):
        self.kept = read("weight")

    def full_weights(self):
        yield "weight", torch.full((3,), float(self.value))


class Stored:
    """What another layout wrote."""

    def __init__(self, folder, layout, config, learned, rank, size):
        self.learned, self.place = learned, (rank, size)

    def weight(self, name):
        return f"{name} of the other"


@pytest.fixture
def config(megatron, tmp_path):
    return load_config(settings(tmp_path / "run", training__keep_checkpoints=1))


def save(config, value=7, step=2, skipped=False):
    engine, state = FileEngine(value), dataclasses.replace(STATE, step=step)
    engine.skipped = skipped
    return checkpoint.save(engine, config, tiny_tokenizer(), state)


def steps(config):
    return [int(path.name[-3:]) for path in sorted(config.path.glob("checkpoints/step-*"))]


def test_what_is_saved_comes_back(config):
    assert checkpoint.find(config.path) is None
    folder = save(config)
    drawn = torch.rand(3)
    assert checkpoint.find(config.path) == folder and folder.name == "step-000000002"
    engine = FileEngine(0)
    assert checkpoint.load(engine, config, folder, [4]) == STATE
    assert engine.value == 7 and engine.queue.keys.tolist() == [7, 7]
    assert engine.kept.tolist() == [7, 7, 7], "what nothing trains is the checkpoint's, too"
    assert torch.equal(torch.rand(3), drawn), "the random state is the saved one"
    assert (folder / "weights-tp0.safetensors").exists() and (folder / "tokenizer").is_dir()


def test_the_random_state_of_a_rank_s_gpu_comes_back(config, monkeypatch):
    """With a GPU that is a number; a checkpoint without one, of a run on the CPU, sets none."""
    states = {1: torch.tensor([5], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index].clone())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: states.update({device.index: state})
    )
    without = save(config)
    monkeypatch.setattr(FileEngine, "device", torch.device("cuda", 1))
    checkpoint.load(FileEngine(0), config, without, [4])
    assert states[1].tolist() == [5]
    folder = save(config, step=3)
    states[1] = torch.tensor([9], dtype=torch.uint8)
    checkpoint.load(FileEngine(0), config, folder, [4])
    assert states[1].tolist() == [5]


def test_a_damaged_checkpoint_is_named(config, capsys):
    folder = save(config)
    (folder / "engine").write_text("8")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoint.find(config.path)
    assert "engine is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model__layers": 3}, r"another model\.layers \(2, now 3\)"),
        ({"seed": 5}, "another seed"),
        ({"stages": "[{name: main, steps: 3, lr: 1e-2}]"}, "another stages"),
        ({"training__batch_samples": 4}, r"training\.batch_samples \(2, now 4\)"),
    ],
)
def test_other_settings_are_refused_by_name(config, overrides, said):
    folder = save(config)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(FileEngine(0), load_config(settings(config.path, **overrides)), folder, [4])


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (("all", "all"), ("all", "router"), True),
        (("reader", "all"), ("all", "reader"), True),
        (("router", "router"), ("router", "all"), False),
        (("reader", "reader"), ("reader", "all"), False),
        (("all", "all"), ("reader", "all"), False),
    ],
)
def test_what_the_optimizer_holds_does_not_change(tmp_path, megatron, before, after, same):
    def run(trains):
        each = (f"{{name: s{i}, steps: 4, lr: 1e-2, trains: {t}}}" for i, t in enumerate(trains))
        return load_config(settings(tmp_path / "run", stages=f"[{', '.join(each)}]"))

    folder = save(run(before))
    if same:
        assert checkpoint.load(FileEngine(0), run(after), folder, [4, 4]) == STATE
    else:
        with pytest.raises(CheckpointError, match=r"stages\[\]\.trains"):
            checkpoint.load(FileEngine(0), run(after), folder, [4, 4])


@pytest.mark.parametrize(
    ("then", "overrides", "said"),
    [
        ({"ranks": 2}, {}, "written by 2 ranks (ZeRO-1), and is read by 1 rank (ZeRO-1)"),
        ({}, {"training__zero_stage": 2}, "1 rank (ZeRO-1), and is read by 1 rank (ZeRO-2)"),
    ],
)
def test_what_another_layout_wrote_is_read_by_name(config, capsys, then, overrides, said):
    """And a rank of before gives its random state and, of all that are read, its key queue."""
    folder = save(config)
    state = json.loads((folder / checkpoint.STATE).read_text())
    (folder / checkpoint.STATE).write_text(json.dumps(state | then))
    (folder / "own-rank1.pt").write_bytes((folder / "own-rank0.pt").read_bytes())
    engine = FileEngine(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "StoredStates", Stored)
        again = load_config(settings(config.path, **overrides))
        assert checkpoint.load(engine, again, folder, [4]).step == STATE.step
    assert engine.value == "adopted" and engine.kept == "weight of the other"
    assert engine.queue.merged == 1 + bool(then)
    assert said in capsys.readouterr().err


def test_rates_and_weights_of_a_stage_may_change(config, capsys):
    folder = save(config)
    stages = "[{name: later, steps: 4, lr: 1e-3, router_weight: 0.5}]"
    again = load_config(settings(config.path, stages=stages))
    assert checkpoint.load(FileEngine(0), again, folder, [4]) == STATE
    said = capsys.readouterr().err
    assert said.startswith("changed since the checkpoint: stages[0].name (main, now later)")
    assert "stages[0].lr (0.01, now 0.001)" in said and "router_weight (1.0, now 0.5)" in said


def test_held_out_numbers_of_other_samples_are_not_compared(config):
    folder = save(config)
    again = load_config(settings(config.path, training__held_out_samples=5))
    assert checkpoint.load(FileEngine(0), again, folder, [4]).held_out == {}


def test_a_damaged_checkpoint_does_not_count_when_old_ones_go(config, capsys):
    """One of a later step is damaged, and the run goes on from an earlier one."""
    save(config, step=2)
    (save(config, step=8) / "engine").write_text("damaged")
    good = save(config, step=5)
    assert steps(config) == [5, 8] and checkpoint.find(config.path) == good
    two = dataclasses.replace(
        config, training=dataclasses.replace(config.training, keep_checkpoints=2)
    )
    (save(two, step=6) / "engine").unlink()
    save(two, step=7)
    assert steps(config) == [5, 6, 7, 8], "7 and 5 are the two"
    assert "step-000000006/engine is missing" in capsys.readouterr().err
    save(two, step=8)
    assert steps(config) == [7, 8], "what is older than the two goes, damaged or not"


@pytest.mark.parametrize(
    "value, skipped", [(float("inf"), False), (float("nan"), False), (7, True)]
)
def test_in_a_streak_nothing_healthy_goes(config, capsys, value, skipped):
    good = save(config, step=2)
    for step in (3, 4, 5):
        save(config, value, step, skipped)
    assert steps(config) == [2, 3, 4, 5] and checkpoint.find(config.path) == good
    assert "passed over" in capsys.readouterr().err
    save(config, step=6)
    assert steps(config) == [6]


def test_the_best_checkpoint_stays_and_is_known_to_a_resumed_run(tmp_path, megatron, capsys):
    own = {"training__keep_checkpoints": 1, "training__held_out_every": 2}
    number = "held_out/niah/recall@1"
    config = load_config(settings(tmp_path / "run", training__best=number, **own))
    best = Best(number, 2, 0.5)
    for step in (2, 3, 4):
        state = dataclasses.replace(STATE, step=step, best=best)
        checkpoint.save(FileEngine(7), config, tiny_tokenizer(), state)
    assert steps(config) == [2, 4]
    folder = config.path / "checkpoints"
    assert checkpoint_folders.best_of(folder)[0] == folder / "step-000000002"
    target = checkpoint.find(config.path)
    assert checkpoint.load(FileEngine(0), config, target, [4]).best == best
    other = load_config(settings(config.path, training__best="held_out/niah/lm", **own))
    assert checkpoint.load(FileEngine(0), other, target, [4]).best is None
    assert "is so no longer: training.best is held_out/niah/lm now" in capsys.readouterr().err
