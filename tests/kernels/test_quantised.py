"""Router keys in 8 bits: what is lost is bounded, and scores are those of the rounded keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, quantise, quantised_document_scores, reference
from msa_kernels.dispatch import interpreting
from torch.nn.functional import normalize as unit

from tests.kernels.kernel_cases import CASES, cu

FORMS = pytest.mark.parametrize("form", ["int8", "fp8"])


def make(chunks, heads=2, width=16, spread=1.0):
    """Keys of unit heads, crowded around one direction where spread is small."""
    around = torch.randn(heads, width)
    return unit(around + spread * torch.randn(chunks, heads, width), dim=-1).flatten(1)


@FORMS
def test_what_rounding_moves_is_known(form):
    keys = make(40)
    keys[3] = 0
    small = quantise(keys, 2, form)
    assert small.values.dtype.itemsize == 1 and small.scales.shape == (40, 2)
    moved = (small.dequantised() - keys).double().norm(dim=1)
    assert (moved <= small.error).all() and (small.error <= moved * 1.001 + 1e-6).all()
    assert (keys.double().norm(dim=1) <= small.norm).all()
    scale = small.scales.repeat_interleave(16, 1)
    step = scale if form == "int8" else (keys.abs() / 8).clamp(min=2**-9 * scale)
    # Triton's interpreter casts to fp8 in its own way.
    if form == "int8" or not interpreting():
        assert ((small.dequantised() - keys).abs() <= step * 0.5001).all()


@FORMS
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=9), tokens=st.integers(0, 5))
@CASES
def test_scores_are_those_of_the_rounded_keys(form, lengths, tokens):
    chunk_cu, query_cu = cu(lengths), cu([tokens, 2])
    small, query = quantise(make(sum(lengths)), 2, form), unit(torch.randn(tokens + 2, 32))
    bank = torch.zeros(2, dtype=torch.int64), cu([len(lengths)])
    expected = reference.document_scores(query, query_cu, small.dequantised(), chunk_cu, *bank)
    actual = quantised_document_scores(query, query_cu, small, chunk_cu, scratch_mb=1e-3)
    # Cosines may cancel to anything: what float32 loses is relative to the vectors' lengths.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@FORMS
@given(spread=st.sampled_from([0.001, 0.03, 1.0]))
@CASES
def test_scores_move_no_further_than_the_error_allows(form, spread):
    keys, query, offsets = make(60, spread=spread), unit(torch.randn(7, 32)), cu([1] * 60)
    small = quantise(keys, 2, form)
    rough = quantised_document_scores(query, cu([4, 3]), small, offsets)
    bank = torch.zeros(2, dtype=torch.int64), cu([60])
    exact = reference.document_scores(query, cu([4, 3]), keys, offsets, *bank)
    sums = 160 * 2.0**-23 * small.norm  # what adding 32 products in float32 can lose, and more
    assert ((rough - exact).abs() <= small.error + sums).all()  # queries have length 1


def test_impossible_arguments_are_refused():
    with pytest.raises(KernelError, match="int8 or fp8"):
        quantise(make(2), 2, "int4")
    with pytest.raises(KernelError, match="do not divide into 5 heads"):
        quantise(make(2), 5, "int8")
    small, query = quantise(make(2), 2, "int8"), torch.randn(3, 16)
    with pytest.raises(KernelError, match=r"\(\(3, 16\), \(2, 32\)\); need \[N, V\]"):
        quantised_document_scores(query, cu([3]), small, cu([2]))
