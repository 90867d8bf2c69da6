"""Floors: everything is read once and multiplied once, and the larger of both is the floor."""

import pytest
import torch

from msa_train.bench import floor
from msa_train.bench.floor import Floor, against_floor, multiply, read_all


def test_a_floor_is_the_larger_of_reading_and_multiplying():
    given = Floor(bytes_per_ms=10, flops_per_ms=100)
    assert given.ms(50, 100) == 5 and given.ms(10, 700) == 7


def test_a_floor_is_measured_once_for_a_dtype(monkeypatch):
    monkeypatch.setattr(floor, "_FLOOR_BYTES", 1 << 16)
    monkeypatch.setattr(floor, "_FLOOR_SIDE", {"cpu": 16, "cuda": 16})
    Floor.measured.cache_clear()
    try:
        measured = Floor.measured(torch.float32)
        assert measured.bytes_per_ms > 0 and measured.flops_per_ms > 0
        if not torch.cuda.is_available():  # there all is computed in float32
            assert Floor.of(torch.int8) is measured
    finally:
        Floor.measured.cache_clear()


def test_floors_read_and_multiply_everything():
    keys = torch.arange(24.0).view(6, 4)
    [total] = read_all([keys])()
    assert int(total) == int(keys.flatten().view(torch.int64).sum())
    odd = torch.arange(5, dtype=torch.int8)
    assert int(read_all([odd])()[0]) == 10
    query, calls = torch.randn(3, 4), []
    real = torch.mm
    run = multiply([keys, keys], query, wide=torch.ones(5, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", lambda a, b, out: calls.append(len(a)) or real(a, b, out=out))
        run()
        multiply([keys, keys], query)()
    assert calls == [5, 5, 2, 12]


def test_a_search_beside_its_floor():
    row = against_floor({"search": [5.0, 9.0, 6.0], "read": [2.0, 1.0, 3.0], "gemm": [1.5, 2.5]}, 2)
    assert row["floor_ms"] == 3.0 and row["route_ms"] == 6.0 and row["ratio"] == 2.0
    assert row["route_best_ms"] == 5.0
