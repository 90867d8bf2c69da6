"""The training benchmark measures every layout of the same questions."""

import pytest
import torch

from msa_train.bench import train
from msa_train.model.losses import Losses


@pytest.mark.parametrize("mode", ["plain", "gradient_cache", "published", "dense"])
def test_every_mode_asks_the_same_of_the_same_memory(mode):
    batches = list(train._batches(mode, 1024, 3))
    contexts = sum(len(batch.ctx_bank) for batch in batches)
    assert contexts == 3
    assert sum(batch.label_count for batch in batches) == 3 * (train.CONTEXT - train.ASKED)
    memory = [len(batch.doc_tokens) for batch in batches]
    if mode == "dense":
        assert memory == [0] * 3 and all(len(b.tokens) == 1024 + train.CONTEXT for b in batches)
    else:
        assert memory == [1024] * len(batches)
        assert sum(batch.routed_context_count for batch in batches) == 3


class Engine:
    """Which takes batches of one device only."""

    device = torch.device("meta")

    def __init__(self):
        self.given = []

    def __call__(self, *given):
        self.given.append(given[0])
        return Losses(torch.zeros(()), torch.zeros(()), {})

    def backward(self, loss, scaled=False):
        pass

    def step(self):
        pass


def test_batches_go_where_the_engine_is(monkeypatch):
    waits, engine = [], Engine()
    monkeypatch.setattr(train, "quickstart_engine", lambda device: engine)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    row = train._row("plain", 128, 2, 0.0, "cuda:0")
    assert (row["device"], row["peak_mb"]) == ("cuda:0", 3.0)
    assert {batch.tokens.device for batch in engine.given} == {engine.device}
    assert len(waits) == len(engine.given) == row["steps"] + 1, "a step is done when it is timed"


def test_rows_are_measured_and_nothing_else_is_printed(capfd):
    rows = train.measure((("gradient_cache", 8192, 2), ("dense", 256, 1)), least_s=0.1)
    assert [row["mode"] for row in rows] == ["gradient_cache", "dense"]
    for row in rows:
        assert row["step_ms"] > 0 and row["peak_mb"] > 100 and row["steps"] >= 1
        assert row["device"] == "cpu"
        expected = row["memory_tokens"] / row["step_ms"] * 1e3
        assert row["tokens_per_s"] == pytest.approx(expected, rel=0.01)
    assert capfd.readouterr().out == ""
