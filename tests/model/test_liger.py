"""What Liger fuses on a GPU: the same numbers as torch (there), and torch alone elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from msa_train.model import liger
from msa_train.model.norm import RMSNorm


def test_cpu_tensors_take_torch():
    x = torch.randn(5, 8)
    assert not liger.uses_liger(x)
    gate, up = torch.randn(2, 5, 8)
    assert torch.equal(liger.swiglu(gate, up), F.silu(gate) * up)


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

    assert liger.uses_liger(torch.ones(1, device="cuda", dtype=dtype))
    compare(liger.swiglu, lambda a, b: F.silu(a) * b, *torch.randn(2, 70, 96))
    norm = RMSNorm(96, 1e-6)
    compare(
        lambda x, w: liger.rms_norm(x, w, 1e-6),
        lambda x, w: x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * w,
        torch.randn(70, 96),
        torch.randn(96),
    )
    labels = torch.randint(300, (70,)).cuda()
    compare(
        lambda h, w: liger.linear_cross_entropy_sum(h, w, labels),
        lambda h, w: F.cross_entropy(h @ w.T, labels, reduction="sum"),
        torch.randn(70, 96),
        torch.randn(300, 96) / 10,
    )
