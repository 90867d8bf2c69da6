"""A case becomes rows: one for each pass and baseline, counted against the floor."""

import torch

from msa_train.bench.floor import Floor
from msa_train.bench.kernels import cases

FLOOR = Floor(bytes_per_ms=1000, flops_per_ms=1000)


def a_case(**changes):
    x = torch.ones(1000, requires_grad=True)
    settings = {
        "name": "double", "shape": {"n": 1000}, "dtype": torch.float32, "ours": lambda: 2 * x,
        "baselines": {"sum": lambda: x + x, "pair": lambda: (x + x, x * 2)}, "moved": 4000.0,
        "flops": 1000.0, "inputs": [x],
    }  # fmt: skip
    return cases.Case(**settings | changes)


def passes(case):
    found = cases.rows(case, FLOOR, 1)
    assert all(row["ours_ms"] > 0 and row["baseline_ms"] > 0 for row in found)
    return [(row["pass"], row["baseline"], row["floor_ms"]) for row in found]


def test_a_row_for_each_pass_and_baseline():
    assert passes(a_case()) == [
        ("forward", "sum", 4.0), ("forward", "pair", 4.0),
        ("backward", "sum", 8.0), ("backward", "pair", 8.0),
    ]  # fmt: skip


def test_both_passes_as_one_row_and_forward_alone_beside_a_reference():
    case = a_case(together=True, backward_factor=0.5)
    assert [each[::2] for each in passes(case)] == [("forward+backward", 6.0)] * 2
    beside = cases.beside_reference(case, case.baselines["sum"])
    assert passes(beside) == [("forward", "reference", 4.0)]


def test_documents_have_one_to_three_chunks_and_exactly_so_many_in_all():
    torch.manual_seed(0)
    for chunks in (1, 2, 7, 100):
        cu = cases.one_to_three(chunks)
        assert int(cu[0]) == 0 and int(cu[-1]) == chunks
        assert int(cu.diff().min()) >= 1 and int(cu.diff().max()) <= 3
    assert cases.every(3, 5).tolist() == [0, 5, 10, 15]


def test_heads_are_unit_vectors_and_sizes_are_bytes():
    heads = cases.unit_heads(5, 2)
    torch.testing.assert_close(heads.norm(dim=2), torch.ones(5, 2))
    assert cases.size(heads, heads.bfloat16()) == 5 * 2 * cases.HEAD_DIM * 6
