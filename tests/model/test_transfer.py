"""Copies that nobody waits for. On a CPU they are the plain ones; on a GPU: tests/pretend."""

import numpy as np
import torch

from msa_train.model.transfer import Download, pinned, sent, uploaded

CPU = torch.device("cpu")


def test_arrays_arrive_as_whole_numbers_in_their_order():
    found = uploaded([[3, 1], range(0), np.arange(3) > 1, np.array([7], np.int32)], CPU)
    assert [each.tolist() for each in found] == [[3, 1], [], [0, 0, 1], [7]]
    assert all(each.dtype == torch.int64 for each in found)


def test_a_cpu_copies_nothing():
    x = torch.arange(3.0)
    assert pinned(x, CPU) is x and sent(x, CPU) is x


def test_states_arrive_in_their_shapes_and_the_dtype_that_is_asked_for():
    states = [torch.randn(2, 3, 4), torch.randn(0, 2), torch.randn(5)]
    found = Download(states, torch.float16).result()
    assert all(torch.equal(x, y.half()) for x, y in zip(found, states, strict=True))
