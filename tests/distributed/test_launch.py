"""`msa train` as a scheduler sees it: what it starts, ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.training import last_words
from tests.distributed.runs import logged, settings

STAGES = "[{name: main, steps: 5000, epochs: 2500, lr: 1e-3}]"


MSA = [sys.executable, "-m", "msa_train.cli", "train", "--ranks", "2"]
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2",
             "--master_port", "29617", "launch/train.py"]  # fmt: skip


def ctrl_c(process):
    """What a terminal does: all processes of the foreground group get it."""
    os.killpg(process.pid, signal.SIGINT)


def sigterm(process):
    process.send_signal(signal.SIGTERM)


def sigkill(process):
    process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "end", "code"),
    [
        (MSA, sigterm, 143),
        pytest.param(MSA, ctrl_c, 130, marks=pytest.mark.slow),
        pytest.param(MSA, sigkill, -9, marks=pytest.mark.slow),
        pytest.param(DEEPSPEED, sigterm, -15, marks=pytest.mark.slow),
        pytest.param(DEEPSPEED, sigkill, -9, marks=pytest.mark.slow),
    ],
)
def test_however_it_is_ended_the_ranks_save_and_nobody_is_left(tmp_path, command, end, code):
    arguments = settings(tmp_path / "run", stages=STAGES)
    config = load_config(arguments)
    build_shards(config.corpus, tmp_path / "run" / "shards", 1)
    config.save(tmp_path / "run.yaml")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--config", str(tmp_path / "run.yaml")],
            stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )  # fmt: skip
    try:
        _wait(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and logged(config.path), 300)
        family = psutil.Process(process.pid).children(recursive=True)
        end(process)
        assert process.wait(100) == code, (tmp_path / "log").read_text()[-2000:]
    finally:
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=90 if code < 0 else 5)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    step = checkpoint_folders.last_step(config.path / "checkpoints")
    assert 0 < step < 5000 and logged(config.path)[-1]["step"] == step
    said = (tmp_path / "log").read_text()
    assert said.count("training stopped") == 1 and "Traceback" not in said, said[-2000:]


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on_by_itself(tmp_path):
    stages = "[{name: main, steps: 150, epochs: 75, lr: 1e-3}]"
    arguments = settings(tmp_path / "run", stages=stages, training__checkpoint_every=20)
    config = load_config(arguments)
    build_shards(config.corpus, tmp_path / "run" / "shards", 1)
    config.save(tmp_path / "run.yaml")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*MSA, "--max-restarts", "1", "--config", str(tmp_path / "run.yaml")],
            stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        saved = config.path / "checkpoints" / checkpoint_folders.name_of(20)
        _wait(lambda: saved.exists() or process.poll() is not None, 300)
        victim = last_words.read(config.path)[1]
        os.kill(victim.process, signal.SIGKILL)
        killed = time.time()
        assert process.wait(200) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        process.kill()
    said = (tmp_path / "log").read_text()
    assert f"{victim} was killed" in said and said.count("restart 1 of 1, from") == 1
    assert [row["step"] for row in logged(config.path)] == list(range(1, 151))
    assert last_words.read(config.path)[1].began - killed < 60


SLURM = {  # the job step is a process of this machine
    "srun": '[ "$1" = --kill-on-bad-exit=1 ] && echo $$ > "$SLURM_STAND_IN/0" && exec "${@:2}"',
    "scancel": '[ "$*" = "--signal=TERM 4242.0" ] && kill -TERM "$(cat "$SLURM_STAND_IN/0")"',
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$SLURM_STAND_IN/asked"',
}


@pytest.mark.slow
def test_a_job_of_slurm_that_is_warned_saves_and_is_queued_again(tmp_path):
    stages = "[{name: main, steps: 400, epochs: 200, lr: 1e-3}]"
    config = load_config(settings(tmp_path / "run", stages=stages))
    build_shards(config.corpus, tmp_path / "run" / "shards", 1)
    config.save(tmp_path / "run.yaml")
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    for name, script in SLURM.items():
        (slurm / name).write_text(f"#!/bin/bash\n{script}\n")
        (slurm / name).chmod(0o755)
    path = os.pathsep.join((str(slurm), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {
        "PATH": path, "SLURM_STAND_IN": str(slurm), "SLURM_JOB_ID": "4242", "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "here", "SLURM_GPUS_ON_NODE": "2", "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }  # fmt: skip

    def job():
        with (tmp_path / "log").open("a") as log:
            script = ["bash", "launch/slurm.sbatch", str(tmp_path / "run.yaml")]
            return subprocess.Popen(script, stdout=log, stderr=log, env=environment)

    metrics, asked = config.path / "metrics.jsonl", slurm / "asked"
    first = job()
    try:
        _wait(lambda: (metrics.exists() and logged(config.path)) or first.poll() is not None, 300)
        first.send_signal(signal.SIGTERM)  # as --signal=B:TERM@300 does
        assert first.wait(100) == 0, (tmp_path / "log").read_text()[-2000:]
        assert asked.read_text() == "requeue 4242\n"
        saved = checkpoint_folders.last_step(config.path / "checkpoints")
        assert 0 < saved < 400 and logged(config.path)[-1]["step"] == saved
        second = job()
        assert second.wait(300) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        for process in psutil.Process().children(recursive=True):
            process.kill()
    assert asked.read_text() == "requeue 4242\n"
    assert [row["step"] for row in logged(config.path)] == list(range(1, 401))


def _wait(found, seconds):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.5)
