"""Document-parallel ranks are measured beside one rank, and what they send is what the formula
says."""

import pytest

from msa_train.bench import documents
from msa_train.bench.train import DOCUMENT, MODEL


def test_ranks_send_what_the_formula_says(capfd):
    rows = documents.measure((("gathered", 4096), ("sharded", 4096)), least_s=0.1)
    gathered, sharded = rows
    assert [row["ranks"] for row in rows] == [2, 2]
    assert gathered["sent_mb"] == gathered["formula_mb"] > 0.05
    assert sharded["formula_mb"] is None and sharded["sent_mb"] > 0
    for row in rows:
        assert row["step_ms"] > 0 and row["peak_mb"] > 100 and row["steps"] >= 1
        assert row["us_per_token"] == pytest.approx(row["step_ms"] * 1e3 / 4096, rel=0.01)
    assert not capfd.readouterr().out


def test_traffic_is_a_row_of_states_and_of_gradients_for_every_other_rank():
    """By loops over the chunks, the layers and the other ranks."""
    for ranks in (1, 2, 4):
        total = 0
        for _ in range(4096 // DOCUMENT // ranks):
            for layer in MODEL.router_layers:
                reads = layer in MODEL.reading_layers
                numbers = MODEL.router_key_heads * MODEL.router_head_dim
                numbers += 2 * MODEL.kv_heads * MODEL.head_dim * reads
                total += 2 * 4 * numbers * (ranks - 1)
        assert documents.planned_bytes(4096, ranks) == total
