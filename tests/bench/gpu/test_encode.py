"""Encoding at both geometries, beside its arithmetic."""

from msa_train.bench.floor import encode_flops
from msa_train.bench.gpu.sizes import TOY
from tests.bench.gpu.toy import FLOOR, toy_rows


def test_rates_of_both_geometries(monkeypatch):
    found, planned = toy_rows("encode", monkeypatch)
    assert found.keys() == planned.keys()
    row = found["4B geometry, 240 tokens at once"]
    flops = encode_flops(TOY.large, [TOY.document_tokens] * 10)
    assert row.value > 0
    assert abs(row.floor / (240 / (flops / FLOOR.flops_per_ms) * 1e3) - 1) < 1e-3
