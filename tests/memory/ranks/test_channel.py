"""Messages between processes: whole or not at all, and in time."""

import socket
import threading
import time

import pytest
import torch

from msa_train.memory.ranks.channel import Channel, Closed, Late


@pytest.fixture
def ends():
    pair = [Channel(end) for end in socket.socketpair()]
    yield pair
    for end in pair:
        end.close()


def soon():
    return time.monotonic() + 10


def test_messages_arrive_whole_and_in_order(ends):
    here, there = ends
    tensors = {
        "places": torch.arange(600_000).view(3, -1)[:, ::2],  # larger than a socket's buffer
        "none": torch.zeros(4, 0),
        "scores": torch.tensor([[1.5, -torch.inf]]),
        "bits": torch.tensor([7, 255], dtype=torch.uint8),
    }
    sender = threading.Thread(target=lambda: [
        here.send({"number": n, "text": "Ünï"}, tensors, soon()) for n in range(3)
    ])  # fmt: skip
    sender.start()
    for number in range(3):
        head, found = there.receive(soon())
        assert head == {"number": number, "text": "Ünï"}
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    sender.join()


def test_what_does_not_come_in_time_is_late(ends):
    here, there = ends
    with pytest.raises(Late):
        there.receive(time.monotonic() + 0.05)
    with pytest.raises(Late):  # nobody reads
        here.send({}, {"large": torch.zeros(10**7)}, time.monotonic() + 0.05)


def test_an_end_that_closes_is_noticed(ends):
    here, there = ends
    here.send({"number": 1}, {}, soon())
    here.close()
    assert there.receive(soon()).head == {"number": 1}
    with pytest.raises(Closed):
        there.receive(soon())
    with pytest.raises(Closed):
        there.send({}, {"large": torch.zeros(10**7)}, soon())
