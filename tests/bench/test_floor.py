"""Floors: everything is read once and multiplied once, and the larger of both is the floor."""

import pytest
import torch
from msa_kernels import cumulative
from torch.utils.flop_counter import FlopCounterMode

from msa_train.bench import floor
from msa_train.bench.floor import Floor, against_floor, encode_flops, multiply, read_all
from tests.memory.tiny import tiny_model


def test_a_floor_is_the_larger_of_reading_and_multiplying():
    given = Floor(bytes_per_ms=10, flops_per_ms=100)
    assert given.ms(50, 100) == 5 and given.ms(10, 700) == 7


def test_a_floor_is_measured_once_for_a_dtype(monkeypatch):
    monkeypatch.setattr(floor, "_FLOOR_BYTES", {"cpu": 1 << 16, "cuda": 1 << 16})
    monkeypatch.setattr(floor, "_FLOOR_SIDE", {"cpu": 16, "cuda": 16})
    Floor.measured.cache_clear()
    try:
        measured = Floor.measured(torch.float32)
        assert measured.bytes_per_ms > 0 and measured.flops_per_ms > 0
        floor.set_floor_sizes(1 << 10, 8)
        assert Floor.measured(torch.float32) is measured
        assert floor._FLOOR_BYTES["cpu"] == 1 << 10 and floor._FLOOR_SIDE["cuda"] == 8
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


@pytest.mark.parametrize("layers", ["3", "1,2", "0"])
def test_encoding_multiplies_by_the_matrices_of_the_layers_below_the_last_router(layers):
    model = tiny_model("none", layers=layers, reads="none", query_reduce="pooled", key_heads=1)
    lengths, last = [7, 80, 33], model.config.last_router_layer
    tokens, cu = torch.zeros(sum(lengths), dtype=torch.int64), cumulative(torch.tensor(lengths))
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model.encode(tokens, cu)
    config, size = model.config, model.config.router.chunk_size
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    own = 2 * sum(lengths) * config.hidden * width  # projections of the last layer
    chunks = sum(-(-n // size) for n in lengths)
    keys = 2 * chunks * config.hidden * config.router_head_dim * len(config.router_layers)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    products = encode_flops(config, lengths) - 4 * config.heads * config.head_dim * pairs * last
    assert counted.get_flop_counts()["Global"][torch.ops.aten.mm] == products + own + keys
