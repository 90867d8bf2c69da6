"""The pretence itself: values are right, costs are those that torch has on a GPU."""

import pytest
import torch
from msa_kernels import cumulative, document_attention, document_scores

from tests.pretend.cuda import MixedDevicesError, Pretended, counting, on_device, pretended_cuda


@pytest.fixture
def cuda():
    with pretended_cuda() as device:
        yield device


def test_values_are_those_of_the_cpu(cuda):
    plain = torch.arange(12.0).view(3, 4)
    x = plain.to(cuda)
    assert isinstance(x, Pretended) and x.device.type == "cuda"
    assert torch.equal((x @ x.t() + 1).cpu(), plain @ plain.t() + 1)
    assert (x.sum().item(), x[1].tolist()) == (66.0, plain[1].tolist())


def test_launches_leave_out_views(cuda):
    x = torch.zeros(4, 6, device=cuda)
    with counting() as counts:
        x.view(6, 4)[2:].t().unsqueeze(0).transpose(1, 2)
        (x + 1).mul_(2)
        x.to(x.device).float()
    assert (counts.launches, counts.syncs, counts.copies) == (2, 0, 0)


@pytest.mark.parametrize(
    ("work", "syncs"),
    [
        (lambda x, _: x.sum().item(), 1),
        (lambda x, _: x.tolist(), 1),
        (lambda x, _: bool((x > 0).any()), 1),
        (lambda x, _: x.nonzero(), 1),
        (lambda x, _: x[x > 0], 1),
        (lambda x, _: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=x.device)), 1),
        (lambda x, _: x.cpu(), 1),
        (lambda x, _: x.to("cpu", non_blocking=True), 0),
        (lambda x, y: y.to(x.device), 1),
        (lambda x, y: y.to(x.device, non_blocking=True), 0),
        (lambda x, _: torch.tensor([1], device=x.device), 1),
        (lambda x, _: x[[0, 2]], 1),
        (lambda x, _: x[torch.tensor([0, 2])], 1),
        (lambda x, _: torch.arange(5, device=x.device), 0),
        (lambda x, _: torch.cuda.current_stream().synchronize(), 1),
        (lambda x, _: x * torch.tensor(2.0), 0),
    ],
)
def test_a_wait_for_the_device_is_a_sync(cuda, work, syncs):
    x, y = torch.ones(3, device=cuda), torch.ones(3)
    with counting() as counts:
        work(x, y)
    assert counts.syncs == syncs, counts


def test_a_tensor_of_the_cpu_beside_one_of_the_device_is_refused(cuda):
    x, y = torch.ones(3, device=cuda), torch.ones(3)
    with pytest.raises(MixedDevicesError, match="cuda:0"):
        x + y
    with pytest.raises(MixedDevicesError, match=r"\(3,\)"):
        torch.cat([x, y])


def test_a_kernel_is_launched_by_its_host_code_and_has_the_values_of_the_torch_path(cuda):
    lengths = cumulative(torch.tensor([2, 3])), cumulative(torch.tensor([1] * 6))
    query, keys = torch.randn(5, 8), torch.randn(6, 8)
    bank = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 6])
    plain = document_scores(query, lengths[0], keys, lengths[1], *bank)
    given = [x.to(cuda) for x in (query, lengths[0], keys, lengths[1], *bank)]
    with counting() as counts:
        found = document_scores(*given)
    assert torch.equal(found.cpu(), plain)
    assert any("Triton's " in site for site in counts.where["launch"]), counts


def test_gradients_flow_through_a_module_on_the_device(cuda):
    layer = torch.nn.Linear(4, 2)
    wanted = torch.autograd.grad(layer(torch.ones(3, 4)).square().sum(), layer.weight)[0]
    on_device(layer)
    layer(torch.ones(3, 4, device=cuda)).square().sum().backward()
    assert torch.allclose(layer.weight.grad.cpu(), wanted)


def test_attention_has_the_gradients_of_the_torch_path(cuda):
    cu = cumulative(torch.tensor([3, 4]))
    states = [torch.randn(7, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    wanted = torch.autograd.grad(document_attention(*states, cu, 0.3).square().sum(), states)
    given = [x.detach().to(cuda).requires_grad_() for x in states]
    document_attention(*given, cu.to(cuda), 0.3).square().sum().backward()
    for x, gradient in zip(given, wanted, strict=True):
        torch.testing.assert_close(x.grad.cpu(), gradient)
