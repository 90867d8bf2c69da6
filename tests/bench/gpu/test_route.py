"""Routing: every form of keys and number of tokens, in bytes of keys per second."""

import pytest

from msa_train.bench.floor import Floor
from msa_train.bench.gpu import route
from msa_train.bench.gpu.sizes import TOY
from tests.bench.gpu.toy import FLOOR, toy_rows


def test_rates_stand_beside_the_measured_floor(monkeypatch):
    monkeypatch.setattr(route, "median", lambda times: 2.0)  # ms
    found, planned = toy_rows("route", monkeypatch)
    assert found.keys() == planned.keys()
    assert found["plain read"].value == FLOOR.bytes_per_ms / 1e6
    width = TOY.large.sizes["router_keys"]
    row = found["bfloat16 keys and query, 5 question tokens"]
    size = 2 * TOY.chunks * width
    assert row.value == pytest.approx(size / 2 / 1e6, rel=1e-3)
    floor_ms = max(size / FLOOR.bytes_per_ms, 2 * 5 * TOY.chunks * width / FLOOR.flops_per_ms)
    assert row.floor == pytest.approx(size / floor_ms / 1e6, rel=1e-3)
    assert row.ratio == pytest.approx(row.value / row.floor, rel=2e-3)
    eight = found["int8 keys, float32 query, 1 question token"]
    assert eight.value == pytest.approx(
        TOY.chunks * (width + 4 * TOY.large.router_key_heads) / 2 / 1e6, rel=1e-3
    )


def test_a_form_that_a_card_has_not_costs_its_own_rows(monkeypatch):
    def refuses(keys, heads, form):
        raise ValueError(f"no {form} here")

    monkeypatch.setattr(route, "quantise", refuses)
    monkeypatch.setattr(Floor, "measured", lambda dtype: FLOOR)
    rows = list(route.rows(TOY))
    assert {row.failed for row in rows if row.failed} == {
        "ValueError: no int8 here", "ValueError: no fp8 here"
    }  # fmt: skip
    assert sum(not row.failed for row in rows) == 2 + 2 * len(TOY.tokens)
