"""Copies that nobody waits for. On a CPU they are the plain ones; on a GPU: tests/pretend."""

import numpy as np
import torch

from msa_train.model.transfer import Downloads, block_of, pinned, sent, uploaded, views

CPU = torch.device("cpu")
TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(5),
    torch.randn(2, 3).bfloat16(),
    torch.zeros(0, 4),
    torch.randn(3, 1, 2),
]


def test_arrays_arrive_as_whole_numbers_in_their_order():
    found = uploaded([[3, 1], range(0), np.arange(3) > 1, np.array([7], np.int32)], CPU)
    assert [each.tolist() for each in found] == [[3, 1], [], [0, 0, 1], [7]]
    assert all(each.dtype == torch.int64 for each in found)


def test_a_cpu_copies_nothing():
    x = torch.arange(3.0)
    assert pinned(x, CPU) is x and sent(x, CPU) is x


def test_states_arrive_in_their_shapes_and_the_dtype_that_is_asked_for():
    states = [torch.randn(2, 3, 4), torch.randn(0, 2), torch.randn(5)]
    found = Downloads(CPU).begin(states, torch.float16).result()
    assert all(torch.equal(x, y.half()) for x, y in zip(found, states, strict=True))


def test_a_block_holds_tensors_side_by_side():
    forms = [(x.shape, x.dtype) for x in TENSORS]
    block = block_of(forms)
    for place, x in zip(views(block, forms), TENSORS, strict=True):
        place.copy_(x)
    for found, x in zip(views(block, forms), TENSORS, strict=True):
        assert found.dtype == x.dtype and torch.equal(found, x)
        assert found.storage_offset() * x.itemsize % 16 == 0
        assert found.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
