"""Chunk pooling: the torch path here, the Triton kernel in a process under Triton's interpreter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msa_kernels import KernelError, chunk_mean, chunk_offsets, pool, reference

from tests.kernels.kernel_cases import cu, error_ratio

SHAPES = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=8),
    st.integers(1, 12),
    st.sampled_from([(), (3,), (2, 5)]),
)


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_chunk_mean_matches_the_reference(shape):
    lengths, size, features = shape
    x = torch.randn(sum(lengths), *features)
    expected = reference.chunk_mean(x, cu(lengths), size)
    assert len(expected) == int(chunk_offsets(cu(lengths), size)[-1])
    assert error_ratio(chunk_mean(x, cu(lengths), size), expected) < 1e-6
    wide = x.double().requires_grad_()
    outs = [f(wide, cu(lengths), size) for f in (chunk_mean, reference.chunk_mean)]
    weight = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * weight).sum(), wide)[0] for out in outs]
    assert error_ratio(*grads) < 1e-12


def test_half_precision_accumulates_in_float32():
    x = torch.full((4096, 1), 1.001, dtype=torch.bfloat16)
    mean = chunk_mean(x, cu([4096]), 4096)
    assert mean.dtype == torch.bfloat16
    assert torch.equal(mean, x[:1])  # a bfloat16 sum would stop growing at 256


def test_impossible_arguments_are_refused():
    x = torch.randn(6, 2)
    with pytest.raises(KernelError, match="ends at 5, but there are 6 rows"):
        chunk_mean(x, cu([5]), 4)
    with pytest.raises(KernelError, match="chunk_size is 0"):
        chunk_mean(x, cu([6]), 0)
    with pytest.raises(KernelError, match=r"x is torch\.int64"):
        chunk_mean(x.long(), cu([6]), 4)
    with pytest.raises(KernelError, match=r"cu_seqlens is torch\.int32"):
        chunk_mean(x, cu([6]).int(), 4)


# Triton reads TRITON_INTERPRET when it is imported: another process, for all of its cases.
INTERPRETED = """
    import torch
    from hypothesis import given, settings
    from msa_kernels import backend_report, chunk_mean, pool, reference
    from tests.kernels.kernel_cases import cu, error_ratio
    from tests.kernels.test_pool import SHAPES

    assert backend_report("cpu")["chunk_mean"]["backend"] == "triton"
    launched = []
    launch = pool._launch
    pool._launch = lambda *x: launched.append(1) or launch(*x)

    @given(SHAPES)
    @settings(max_examples=25, deadline=None, database=None)
    def compare(shape):
        lengths, size, features = shape
        x = torch.randn(sum(lengths), *features, requires_grad=True)
        outs = [f(x, cu(lengths), size) for f in (chunk_mean, reference.chunk_mean)]
        assert error_ratio(*outs) < 1e-6
        weight = torch.randn_like(outs[0])
        grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in outs]
        assert error_ratio(*grads) < 1e-6

    compare()
    x = torch.randn(70, 300, requires_grad=True)  # more features than a block
    outs = [f(x, cu([70]), 64) for f in (chunk_mean, reference.chunk_mean)]
    assert error_ratio(*outs) < 1e-6
    print("launches", len(launched))
"""


def test_triton_kernel_matches_the_reference():
    pytest.importorskip("triton", reason="triton is not installed")
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERPRETED)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 25, "the Triton kernel was not launched"


def test_triton_kernels_compile_for_gpus():
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel in pool._kernels():
        source, target, *_ = kernel.arg_names
        signature = {source: "*bf16", target: "*bf16", "token_cu": "*i64", "features": "i32"}
        for capability in (80, 90):
            compiled = triton.compile(
                ASTSource(kernel, signature | {"BLOCK": "constexpr"}, {"BLOCK": 128}),
                target=GPUTarget("cuda", capability, 32),
            )
            # A 32-bit product of a row and the number of features overflows at 2^31 values.
            assert "mul.lo.s64" in compiled.asm["ptx"]
            assert "mul.lo.s32" not in compiled.asm["ptx"]
