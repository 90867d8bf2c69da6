"""Tensors point to point: as they were, in order, and in time."""

import threading
import time

import pytest
import torch

from msa_train.memory.ranks.exchange import Exchange, ExchangeError, as_bytes


@pytest.fixture
def ends(tmp_path):
    """Ranks 0 and 1 of one group, in two threads."""
    found = {}

    def join(rank):
        found[rank] = Exchange(tmp_path / "meeting", rank, 2, torch.device("cpu"), 30.0)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    yield found[0], found[1]
    for end in found.values():
        end.close()


def soon():
    return time.monotonic() + 20


def test_tensors_arrive_as_bytes_in_order(ends):
    zero, one = ends
    sent = [torch.arange(5, dtype=torch.float16), torch.randn(3, 700), torch.empty(0, 4)]
    waits = [zero.send(tensor, 1) for tensor in sent]
    for tensor in sent:
        data = one.receive(tensor.nbytes, 0, soon())
        assert torch.equal(data, as_bytes(tensor))
        assert torch.equal(data.view(tensor.dtype).view(tensor.shape), tensor)
    for wait in waits:
        wait(soon())
    back = one.send(torch.tensor([7]), 0)
    assert zero.receive(8, 1, soon()).view(torch.int64).tolist() == [7]
    back(soon())


def test_a_tensor_that_does_not_come_is_an_error_in_time(ends):
    began = time.monotonic()
    with pytest.raises(ExchangeError):
        ends[1].receive(8, 0, began + 0.2)
    assert time.monotonic() - began < 10
