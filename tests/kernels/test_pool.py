"""Chunk pooling against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, chunk_mean, chunk_offsets, reference
from msa_kernels.dispatch import interpreting
from msa_kernels.pool import mean_in_torch
from torch.library import opcheck

from tests.kernels.kernel_cases import (
    CASES,
    DTYPES,
    FAR_ROWS,
    TOLERANCE,
    as_inputs,
    check_compiled,
    cu,
    error_ratio,
    far_rows,
    torch_only,
)

LENGTHS, SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 12)


@DTYPES
@given(lengths=LENGTHS, size=SIZES, features=st.sampled_from([(), (3,), (2, 5), (300,)]))
@CASES
def test_chunk_mean_matches_the_reference(dtype, lengths, size, features):
    (x,) = as_inputs(torch.randn(sum(lengths), *features), dtype=dtype)
    outs = [f(x, cu(lengths), size) for f in (chunk_mean, reference.chunk_mean)]
    assert len(outs[0]) == int(chunk_offsets(cu(lengths), size)[-1])
    assert error_ratio(*outs) < 1e-6
    weight = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in outs]
    assert error_ratio(*grads) < TOLERANCE[dtype]


@torch_only
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


def test_means_of_far_tokens(tmp_path):
    """Of the last tokens alone, so that the rest need not be read."""
    far, token_cu = far_rows(tmp_path), torch.tensor([FAR_ROWS - 128, FAR_ROWS - 64, FAR_ROWS])
    if interpreting():
        from msa_kernels import pool_triton

        mean = pool_triton.chunk_mean(far, token_cu)
    else:
        mean = mean_in_torch(far[-128:], token_cu - token_cu[0])
    assert not mean[0].any() and bool((mean[1] == 1).all())


def test_the_operator_is_what_it_says_and_compiles():
    x = torch.randn(9, 2, 8, requires_grad=True)
    flat = x.detach().flatten(1).requires_grad_()
    opcheck(torch.ops.msa_kernels.chunk_mean.default, (flat, cu([3, 1, 3, 2])))
    opcheck(torch.ops.msa_kernels.chunk_token_offsets.default, (cu([4, 5]), 3))
    check_compiled(chunk_mean, (x, cu([4, 5]), 3))
