"""The two cards of the pretence: what an unwary program does to them is noticed."""

import threading

import pytest
import torch
from msa_kernels import chunk_mean, cumulative
from msa_kernels.pool_triton import chunk_mean as launches_unguarded

from tests.pretend.cards import OrderError, WrongCardError
from tests.pretend.cuda import counting, pretended_cuda


@pytest.fixture
def second():
    with pretended_cuda(1) as device:
        yield device


def test_a_kernel_is_not_launched_with_the_memory_of_another_card(second):
    x, cu = torch.ones(6, 4, device=second), cumulative(torch.tensor([2, 4])).to(second)
    with pytest.raises(WrongCardError, match=r"launched on cuda:0: tensors of \{'cuda:1'\}"):
        launches_unguarded.__wrapped__(x, cu)
    with torch.cuda.device(1):
        launches_unguarded.__wrapped__(x, cu)
    assert torch.cuda.current_device() == 0
    assert torch.equal(chunk_mean(x, cu, 8).cpu(), torch.ones(2, 4))


def test_tensors_of_two_cards_do_not_meet(second):
    x = torch.ones(3, device=second)
    with pytest.raises(WrongCardError, match="'cuda:1', 'cuda:0'"):
        x + x.to("cuda:0")
    with pytest.raises(WrongCardError):
        x[torch.tensor([0], device="cuda:0")]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.ones(2, device="cuda"),
        lambda x: torch.tensor([1], device="cuda"),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.Event().record(),
        lambda x: torch.cuda.get_device_properties(),
        lambda x: torch.cuda.empty_cache(),
    ],
)
def test_cuda_without_a_number_is_the_current_card(second, work):
    x = torch.ones(3, device=second)
    with counting() as counts:
        work(x)
    assert counts.elsewhere(1)
    with torch.cuda.device(second), counting() as counts:
        work(x)
    assert counts.log and not counts.elsewhere(1)


def test_a_thread_begins_on_the_first_card(second):
    found = []
    with torch.cuda.device(second):
        thread = threading.Thread(
            target=lambda: found.append((torch.cuda.current_device(), torch.ones(1).to(second)))
        )
        thread.start()
        thread.join()
    assert found[0][0] == 0 and found[0][1].device == second


def test_streams_have_to_wait_for_each_other(second):
    x, side = torch.ones(3, device=second), torch.cuda.Stream(second)
    with torch.cuda.stream(side), pytest.raises(OrderError, match="not after stream"):
        x + 1
    side.wait_stream(torch.cuda.current_stream(second))
    with torch.cuda.stream(side):
        y = x + 1
    with pytest.raises(OrderError, match="reads the same memory"):
        x.zero_()
    side.synchronize()  # the host gives what it knows to all that it launches
    assert (x.zero_() + y).tolist() == [2, 2, 2]


def test_a_copy_is_waited_for_before_the_host_looks(second):
    x, there = torch.ones(3, device=second), torch.empty(3, pin_memory=True)
    there.copy_(x, non_blocking=True)
    copied = torch.cuda.current_stream(second).record_event()
    for look in (there.clone, there.tolist):
        with pytest.raises(OrderError, match="has not been waited for"):
            look()
    copied.synchronize()
    assert there.tolist() == [1, 1, 1]


def test_a_graph_does_again_what_was_captured(second):
    x, total = torch.ones(3, device=second), torch.zeros(3, device=second)
    with torch.cuda.device(second):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            total += x * 2
            with pytest.raises(OrderError, match="while a graph is captured"):
                x.sum().item()
        x.fill_(5)
        with counting() as counts:
            before = total.tolist()
            graph.replay()
        assert counts.launches == 1, counts
        assert torch.equal(total.cpu(), torch.tensor(before) + 10)
    with pytest.raises(WrongCardError, match="replayed"):
        graph.replay()
