"""Rows of pooled queries: ratios of what was timed, and a model that is asked by one vector."""

import torch

from msa_train.bench.memory import pooled
from msa_train.memory.search.keys import LayerKeys
from tests.bench.memory.tiny_sizes import load
from tests.memory.search.random_memory import HEADS, ROUTER, memory


def test_a_row_compares_the_search_with_plain_reads():
    times = {"search": [9.0, 6.0, 12.0], "read": [5, 4], "read_stored": [8, 10], "gemm": [1, 2]}
    work = {"search": [10.0, 12.0], "read": [5.0, 6.0], "read_stored": [20.0]}
    assert pooled._row(times, work, 3) == {
        "route_ms": 9, "route_best_ms": 6, "gemm_ms": 3, "read_ms": 4, "read_stored_ms": 8,
        "ratio": 2.25, "ratio_best": 1.5, "stored_ratio_best": 0.75,
        "cpu_ms": 10, "cpu_ratio": 2, "cpu_stored_ratio": 0.5,
    }  # fmt: skip


def test_what_a_search_reads_is_all_of_its_keys():
    keys, cu = memory([2, 1, 3], 0)
    [plain] = pooled._read(LayerKeys(keys, cu, ROUTER, HEADS))
    assert plain.shape == keys.shape and plain.data_ptr() == keys.data_ptr()
    values, scales = pooled._read(LayerKeys(keys, cu, ROUTER, HEADS, "int8"))
    assert values.dtype == torch.int8 and scales.shape == (6, HEADS)


def test_a_model_is_asked_as_if_it_pooled():
    before, (model, _, _) = load()[0].config, pooled._pooling(load)
    assert before.router.query_reduce == "max" and model.config.router.query_reduce == "pooled"
