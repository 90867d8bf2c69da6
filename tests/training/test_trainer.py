"""A rank's whole life: its steps, its end before the last one, and errors with their exit codes."""

import os
import subprocess
import time

import pytest

from data_pipeline.shards.build import build_shards
from msa_train import checkpoint_folders
from msa_train.config import load_config
from msa_train.training.launchers import STARTED_BY
from tests.distributed.ranks import Apart, run_ranks
from tests.distributed.runs import logged, settings, train_all

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments):
    from msa_train.training import trainer

    trainer.main(arguments)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """(folder, result) of a run of four steps that is stopped after two and resumed; beside it
    another, `brief`, logs every three steps."""
    folder = tmp_path_factory.mktemp("run") / "stopped"
    brief = settings(folder.with_name("brief"), training__shards=shards, training__log_every=3)
    runs = [
        {"arguments": settings(folder, training__shards=shards), "stop_after": 2},
        {"arguments": brief},
    ]
    return folder, run_ranks(1, train_all, runs)[0][0]


def test_a_stopped_run_goes_on_to_its_last_step(trained):
    folder, result = trained
    assert result["codes"] == [143, 0]
    assert [row["step"] for row in logged(folder)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == [
        "step-000000002", "step-000000004",
    ]  # fmt: skip


def test_the_last_step_is_logged_whatever_the_interval(trained):
    """So a run shorter than training.log_every says something too."""
    rows, every = logged(trained[0].with_name("brief")), logged(trained[0])
    assert [row["step"] for row in rows] == [3, 4]
    assert [row["loss/lm"] for row in rows] == [row["loss/lm"] for row in every[2:]]


def test_every_logged_step_has_its_numbers(trained):
    for row in logged(trained[0]):
        assert row["loss/lm"] > 0 and row["loss/router"] > 0 and row["lr"] == 1e-2
        assert row["skipped_steps"] == row["skipped_samples"] == row["stage"] == 0
        assert row["memory_tokens_per_s"] > 0 and 0 <= row["data_wait"] <= 1
        assert any(name.startswith("router/layer_") for name in row)


def started(folder, *arguments, **more):
    """The trainer as the launcher starts it, alone (test_launch.py has the launcher itself)."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    folder.mkdir(exist_ok=True)
    return Apart(folder, environment | more, main, list(map(str, arguments)))


def rank(folder, *arguments):
    return started(folder, *arguments).end()


def test_errors_of_the_user_are_printed_once_with_their_exit_code(trained, shards, tmp_path):
    done = rank(tmp_path, "--local_rank=0", "--training.zero_stage", "9")
    assert done.code == 2 and "training.zero_stage" in done.err
    assert "Traceback" not in done.err
    done = rank(tmp_path, *settings(trained[0], training__shards=shards))
    assert done.code == 4 and "continue it with --resume" in done.err


def test_one_run_at_a_time_and_none_without_its_launcher(tmp_path):
    """A run is at work: a second one is refused. Its launcher is killed: it saves and ends."""
    stages = "[{name: main, steps: 20000, epochs: 10000, lr: 1e-3}]"
    arguments = settings(tmp_path / "run", stages=stages)
    build_shards(load_config(arguments).corpus, tmp_path / "run" / "shards", 1)
    launcher = subprocess.Popen(["sleep", "300"])
    first = started(tmp_path / "first", *arguments, **{STARTED_BY: str(launcher.pid)})
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    second = rank(tmp_path / "second", *arguments, "--resume")
    launcher.kill()
    launcher.wait()
    done = first.end()
    assert second.code == 8 and f"trained in by process {first.process.pid} on" in second.err
    assert done.code == 143 and "training stopped: the launcher is gone at step" in done.err
    step = checkpoint_folders.last_step(tmp_path / "run" / "checkpoints")
    assert 0 < step < 20000 and logged(tmp_path / "run")[-1]["step"] == step
    assert (tmp_path / "run" / "run.lock").read_text() == "", "it let go"
