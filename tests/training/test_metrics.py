"""Tracking: recall counts, the JSON-lines file, W&B offline, and W&B that breaks."""

import json

import pytest
import torch

from msa_train.config import load_config
from msa_train.model.router import Routing
from msa_train.training import metrics

NUMBERS = {"loss/lm": 1.5, "loss/router": 0.5, "lr": 1e-3, "step_ms": 10.0,
           "router/layer_1_recall@1": 0.25}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return load_config(["--output", str(tmp_path), "--training.wandb.mode", "offline"])


def test_numbers_go_to_the_file_and_to_wandb_offline(config, capsys):
    reporter = metrics.Reporter(config, None, first_step=0, rank=0)
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

    reporter = metrics.Reporter(config, None, first_step=0, rank=0)
    reporter._run.finish()
    reporter._run = Broken()
    reporter.log(10, NUMBERS)
    reporter.log(20, NUMBERS)
    assert capsys.readouterr().err.count("disk full") == 1
    assert len((config.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_ranks_are_silent(config):
    reporter = metrics.Reporter(config, None, first_step=0, rank=1)
    reporter.log(10, NUMBERS)
    reporter.finish()
    assert not (config.path / "metrics.jsonl").exists()


def test_recall_is_counted_over_contexts_with_positives(monkeypatch):
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda *_, **__: None)

    class Batch:
        positives = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])

    documents = torch.tensor([[0, 1], [0, 1], [2, -1]])
    none = torch.zeros(0)
    routing = Routing(none, none, documents, documents.float(), none, none, None)
    counter = metrics.RecallCounter((3,), None, torch.device("cpu"))
    counter.add(Batch, {3: routing})
    assert counter.result() == {
        "router/layer_3_recall@1": pytest.approx(0.5),  # the first found one, the last none
        "router/layer_3_recall@k": pytest.approx(0.25),
    }
