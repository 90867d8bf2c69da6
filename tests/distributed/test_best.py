"""`training.best` from beginning to end: train with evaluation inside, export what was best."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.model.weights import published_weights
from tests.distributed.runs import logged, settings

# It learns, then a rate of 1 spoils it: the best is long gone when the run ends.
STAGES = (
    "[{name: main, steps: 5, lr: 1e-2, router_weight: 1}, "
    "{name: spoiled, steps: 5, lr: 1.0, router_weight: 1}]"
)
NUMBER = "held_out/niah/lm"


def msa(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "msa_train.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_the_best_of_a_run_is_exported(tmp_path):
    run = tmp_path / "run"
    evaluated = {"training__held_out_every": 1, "training__held_out_samples": 2}
    kept = {"training__best": NUMBER, "training__keep_checkpoints": 1}
    more = {"training__checkpoint_every": 4, "data__workers": 1}
    config = load_config(settings(run, stages=STAGES, **evaluated, **kept, **more))
    config.save(tmp_path / "run.yaml")
    msa("data", "build", "--config", tmp_path / "run.yaml")
    msa("train", "--config", tmp_path / "run.yaml", "--ranks", 2)

    numbers = {row["step"]: row[NUMBER] for row in logged(run) if NUMBER in row and row["step"]}
    step = min(numbers, key=numbers.get)
    assert len(numbers) == 10 and step not in (4, 8, 10), "only for being best it was saved"
    best = run / "checkpoints" / f"step-{step:09d}"
    folders = {path for path in (run / "checkpoints").iterdir() if path.is_dir()}
    newest = run / "checkpoints" / f"step-{checkpoint_folders.last_step(run / 'checkpoints'):09d}"
    assert folders == {best, newest} and newest.name == "step-000000010"

    said = msa("export", run, tmp_path / "best", "--best")
    assert f"best checkpoint: {best}" in said
    msa("export", run, tmp_path / "last")
    exports = [
        load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("best", "last")
    ]
    trained = load_file(best / "weights-tp0.safetensors")
    published = dict(published_weights([trained], config.model))
    assert published.keys() == exports[0].keys()
    assert all(torch.equal(weight, exports[0][name]) for name, weight in published.items())
    assert any(not torch.equal(weight, exports[1][name]) for name, weight in published.items())
