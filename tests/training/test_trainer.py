"""A rank's whole life: its steps, its end before the last one, and errors with their exit codes."""

import os

import pytest

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


def rank(folder, *arguments):
    """The trainer as the launcher starts it, alone (test_launch.py has the launcher itself)."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return Apart(folder, environment, main, list(map(str, arguments))).end()


def test_errors_of_the_user_are_printed_once_with_their_exit_code(trained, shards, tmp_path):
    done = rank(tmp_path, "--local_rank=0", "--training.zero_stage", "9")
    assert done.code == 2 and "training.zero_stage" in done.err
    assert "Traceback" not in done.err
    done = rank(tmp_path, *settings(trained[0], training__shards=shards))
    assert done.code == 4 and "continue it with --resume" in done.err
