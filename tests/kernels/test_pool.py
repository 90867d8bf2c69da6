"""Chunk pooling against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, chunk_mean, chunk_offsets, pool_states, reference

from tests.kernels.kernel_cases import (
    CASES,
    DTYPES,
    TOLERANCE,
    as_inputs,
    cu,
    error_ratio,
    gradients,
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


@DTYPES
@given(lengths=LENGTHS, size=SIZES, heads=st.sampled_from([(1, 4), (2, 3)]), unit=st.booleans())
@CASES
def test_pool_states_matches_the_reference(dtype, lengths, size, heads, unit):
    states = as_inputs(*(torch.randn(sum(lengths), *heads) for _ in range(3)), dtype=dtype)
    outs = [f(*states, cu(lengths), size, unit) for f in (pool_states, reference.pool_states)]
    weights = [torch.randn_like(out) for out in outs[0]]
    grads = []
    for out in outs:
        total = torch.cat([x.flatten() for x in out])
        grads.append(gradients(total, states, torch.cat([w.flatten() for w in weights])))
    for actual, expected in zip((*outs[0], *grads[0]), (*outs[1], *grads[1]), strict=True):
        assert error_ratio(actual, expected) < TOLERANCE[dtype]


def test_a_router_key_of_zeros_stays_finite():
    states = [torch.zeros(5, 2, 4, requires_grad=True) for _ in range(3)]
    outs = pool_states(*states, cu([5]), 4)
    assert not torch.cat([x.flatten() for x in outs]).any()


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
    heads = torch.randn(6, 2, 4)
    with pytest.raises(KernelError, match=r"need \[N, G, D\]"):
        pool_states(heads, heads, heads[:, :1], cu([6]), 4)
    with pytest.raises(KernelError, match="different dtypes"):
        pool_states(heads, heads, heads.double(), cu([6]), 4)
