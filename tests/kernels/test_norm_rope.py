"""Normalised and rotated heads against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, norm_rope, reference
from torch.library import opcheck

from tests.kernels.kernel_cases import (
    CASES,
    DTYPES,
    TOLERANCE,
    as_inputs,
    check_compiled,
    error_ratio,
    gradient_error,
    gradients,
    strided,
)


def tables(tokens, width):
    angle = torch.rand(tokens, width // 2) * 100
    return angle.cos(), angle.sin()


@DTYPES
@given(
    tokens=st.integers(0, 70),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    width=st.sampled_from([2, 6, 16]),
)
@CASES
def test_norm_rope_matches_the_reference(dtype, tokens, heads, width):
    states = (torch.randn(tokens, count, width) for count in heads)
    inputs = as_inputs(*states, torch.randn(width), torch.randn(width), dtype=dtype)
    outs = [
        torch.cat(f(*inputs, *tables_, 1e-6), 1)
        for tables_ in [tables(tokens, width)]
        for f in (norm_rope, reference.norm_rope)
    ]
    assert outs[0].dtype == dtype and error_ratio(*outs) < 1e-6
    weight = torch.randn_like(outs[0])
    assert gradient_error(*(gradients(out, inputs, weight) for out in outs)) < TOLERANCE[dtype]


def test_impossible_arguments_are_refused():
    q, k, weight = torch.randn(3, 2, 4), torch.randn(3, 1, 4), torch.ones(4)
    cos, sin = tables(3, 4)
    with pytest.raises(KernelError, match="cos and sin have shapes"):
        norm_rope(q, k, weight, weight, cos[:2], sin[:2], 1e-6)
    with pytest.raises(KernelError, match=r"need \[N, H, D\]"):
        norm_rope(q, k[:2], weight, weight, cos, sin, 1e-6)
    with pytest.raises(KernelError, match=r"q, k, .* are torch\.float32, torch\.bfloat16"):
        norm_rope(q, k.bfloat16(), weight, weight, cos, sin, 1e-6)
    with pytest.raises(KernelError, match="different devices"):
        norm_rope(q, k, weight, weight, cos, sin.to("meta"), 1e-6)


def test_the_operator_is_what_it_says_and_compiles():
    states = (torch.randn(9, heads, 8) for heads in (4, 2))
    inputs = as_inputs(*states, torch.randn(8), torch.randn(8), dtype=torch.float32)
    given_ = (*inputs, *tables(9, 8), 1e-6)
    opcheck(torch.ops.msa_kernels.norm_rope.default, given_)
    turned = as_inputs(*(strided(x.detach()) for x in inputs), dtype=torch.float32)
    opcheck(torch.ops.msa_kernels.norm_rope.default, (*turned, *given_[4:]))
    check_compiled(norm_rope, given_)
