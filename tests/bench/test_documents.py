"""Document-parallel ranks are measured beside one rank, and what they send is what the formula
says."""

import pytest

from msa_train.bench import documents
from msa_train.bench.train import DOCUMENT, MODEL


@pytest.mark.parametrize("sharing", ["gathered", pytest.param("sharded", marks=pytest.mark.slow)])
def test_ranks_send_what_the_formula_says(sharing, capfd):
    [row] = documents.measure(((sharing, 4096),), least_s=0.1)
    assert row["ranks"] == 2 and row["sent_mb"] > 0.05
    assert row["formula_mb"] == (row["sent_mb"] if sharing == "gathered" else None)
    assert row["step_ms"] > 0 and row["peak_mb"] > row["in_use_mb"] > 100 and row["steps"] >= 1
    assert row["us_per_token"] == pytest.approx(row["step_ms"] * 1e3 / 4096, rel=0.01)
    assert row["planned_mb"] == pytest.approx(row["in_use_mb"], rel=0.15)
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
        assert documents.planned_traffic(4096, ranks) == total
