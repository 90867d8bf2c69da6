"""Norm, rotation and SwiGLU: torch's numbers, and Liger's the same on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from msa_kernels import reference

from msa_train.model import ops
from msa_train.model.ops import RMSNorm


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_rotated_as_the_kernels_rotate_normed_ones(dtype):
    gen = torch.Generator().manual_seed(0)
    q, k = torch.randn(6, 4, 8, generator=gen), torch.randn(6, 2, 8, generator=gen)
    q, k = (F.normalize(x, dim=-1) * 8**0.5 for x in (q, k))  # norm changes nothing
    tables = ops.rotary_tables(torch.tensor([0, 1, 2, 3, 40, 7]), 8, 1e4)
    ones = torch.ones(8)
    expected = reference.norm_rope(q, k, ones, ones, *tables, 0.0)
    plain = ops.rotate_heads(q.to(dtype), k.to(dtype), *tables)
    normed = ops.rotate_heads(q, k, *tables, (ones, ones), 0.0)
    for ours, theirs, both in zip(plain, expected, normed, strict=True):
        assert ours.dtype == dtype
        tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(ours.float(), theirs, **tolerance)
        torch.testing.assert_close(both, theirs)


def test_cpu_tensors_take_torch():
    x = torch.randn(5, 8)
    assert not ops.uses_liger(x)
    gate, up = torch.randn(2, 5, 8)
    assert torch.equal(ops.swiglu(gate, up), F.silu(gate) * up)


def test_no_label_costs_nothing():
    """Liger divides by the number of labelled tokens."""
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(6, 4, requires_grad=True)
    loss = ops.linear_cross_entropy_sum(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0 and loss.dtype == torch.float32
    assert hidden.grad.shape == (0, 4) and torch.equal(weight.grad, torch.zeros(6, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_liger_gives_what_torch_gives(dtype):
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed (extra gpu)")
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]

    def compare(run, truth, *inputs):
        inputs = [x.to(dtype).cuda().requires_grad_() for x in inputs]
        wide = [x.detach().double().requires_grad_() for x in inputs]
        outs = run(*inputs), truth(*wide)
        weight = torch.randn_like(outs[1])
        grads = [
            torch.autograd.grad((out * weight.to(out.dtype)).sum(), own)
            for out, own in zip(outs, (inputs, wide), strict=True)
        ]
        for a, b in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
            assert float((a.double() - b).norm() / b.norm()) < tolerance

    assert ops.uses_liger(torch.ones(1, device="cuda", dtype=dtype))
    compare(ops.swiglu, lambda a, b: F.silu(a) * b, *torch.randn(2, 70, 96))
    norm = RMSNorm(96, 1e-6)
    compare(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
        lambda x, w: x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * w,
        torch.randn(70, 96),
        torch.randn(96),
    )
    labels = torch.randint(300, (70,)).cuda()
    compare(
        lambda h, w: ops.linear_cross_entropy_sum(h, w, labels),
        lambda h, w: F.cross_entropy(h @ w.T, labels, reduction="sum"),
        torch.randn(70, 96),
        torch.randn(300, 96) / 10,
    )
