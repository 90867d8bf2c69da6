"""Tracking: recall counts, the JSON-lines file, W&B offline, and W&B that breaks."""

import json

import pytest

from msa_train.config import load_config
from msa_train.training import metrics

NUMBERS = {"loss/lm": 1.5, "loss/router": 0.5, "lr": 1e-3, "step_ms": 10.0,
           "router/layer_1_recall@1": 0.25}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return load_config(["--output", str(tmp_path), "--training.wandb.mode", "offline"])


def test_numbers_go_to_the_file_and_to_wandb_offline(config, capsys):
    reporter = metrics.Reporter(config, None, first_step=0, steps=100, rank=0)
    assert reporter.wandb_id
    reporter.log(10, NUMBERS)
    reporter.finish()
    assert json.loads((config.path / "metrics.jsonl").read_text()) == {"step": 10, **NUMBERS}
    assert list(config.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert "recall@1 0.250" in capsys.readouterr().err


def test_wandb_that_breaks_does_not_end_the_run(config, capsys):
    class Broken:
        id = "x"

        def log(self, *_, **__):
            raise OSError("disk full")

    reporter = metrics.Reporter(config, None, first_step=0, steps=100, rank=0)
    reporter._run.finish()
    reporter._run = Broken()
    reporter.log(10, NUMBERS)
    reporter.log(20, NUMBERS)
    assert capsys.readouterr().err.count("disk full") == 1
    assert len((config.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_ranks_are_silent(config):
    reporter = metrics.Reporter(config, None, first_step=0, steps=100, rank=1)
    reporter.log(10, NUMBERS)
    reporter.finish()
    assert not (config.path / "metrics.jsonl").exists()
