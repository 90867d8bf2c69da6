import pytest
import torch

from msa_train.model.norm import RMSNorm


def test_gradients_are_those_of_the_formula():
    gen = torch.Generator().manual_seed(0)
    norm = RMSNorm(6, 1e-6).double()
    x = torch.randn(5, 3, 6, generator=gen, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    x.requires_grad_(False)

    def of_weight(weight):
        return torch.func.functional_call(norm, {"weight": weight}, x)

    assert torch.autograd.gradcheck(of_weight, torch.rand_like(norm.weight).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs(dtype):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(7, 32, generator=gen).to(dtype)
    ours, theirs = RMSNorm(32, 1e-6), torch.nn.RMSNorm(32, eps=1e-6)
    weight = torch.rand(32, generator=gen)
    results = []
    for norm in (ours, theirs):
        norm.weight.data.copy_(weight)
        y = x.clone().requires_grad_()
        out = norm.to(dtype)(y)
        out.backward(torch.ones_like(out))
        results.append((out, y.grad, norm.weight.grad))
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b)
