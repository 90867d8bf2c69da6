"""The training benchmark measures every layout of the same questions."""

import pytest

from msa_train.bench import train


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


def test_rows_are_measured_and_nothing_else_is_printed(capfd):
    rows = train.measure((("gradient_cache", 8192, 2), ("dense", 256, 1)), least_s=0.1)
    assert [row["mode"] for row in rows] == ["gradient_cache", "dense"]
    for row in rows:
        assert row["step_ms"] > 0 and row["peak_mb"] > 100 and row["steps"] >= 1
        expected = row["memory_tokens"] / row["step_ms"] * 1e3
        assert row["tokens_per_s"] == pytest.approx(expected, rel=0.01)
    assert capfd.readouterr().out == ""
