"""Router keys in 8 bits: what is lost is bounded, and the certified search loses nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import (
    KernelError,
    certified_top_documents,
    document_scores,
    quantise,
    quantised_document_scores,
    reference,
    top_documents,
)
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
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    spread=st.sampled_from([0.001, 0.03, 1.0]),
    k=st.integers(1, 20),
    scratch_mb=st.sampled_from([1e-3, 64.0]),
)
@CASES
def test_the_certified_search_finds_what_float32_finds(form, lengths, spread, k, scratch_mb):
    chunk_cu, query_cu, keys = cu(lengths), cu([4, 0, 3]), make(sum(lengths), spread=spread)
    query = unit(torch.randn(7, 32))
    bank = torch.zeros(3, dtype=torch.int64), cu([len(lengths)])
    scores = document_scores(query, query_cu, keys, chunk_cu, *bank)
    values, documents = top_documents(scores, k)
    small = quantise(keys, 2, form)
    found = certified_top_documents(
        query, query_cu, small, keys.__getitem__, chunk_cu, k, scratch_mb
    )
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-6)
    # Where two scores are equal but for the last bit, either order is right.
    exact = scores.double().gather(1, found.documents.clamp(min=0))
    apart = (values - exact).abs() < 1e-6
    assert (apart | (found.documents == documents)).all()
    assert (found.candidates <= (scores > -torch.inf).sum(1)).all()


def test_few_candidates_are_scored_again_when_scores_are_apart():
    torch.manual_seed(0)
    keys, query = make(4000, heads=4, width=32), torch.zeros(1, 128)
    query[0] = keys[17] / 4
    found = certified_top_documents(
        query, cu([1]), quantise(keys, 4, "int8"), keys.__getitem__, cu([1] * 4000), 1
    )
    assert found.documents.tolist() == [[17]] and found.candidates.tolist() == [1]


def test_impossible_arguments_are_refused():
    with pytest.raises(KernelError, match="int8 or fp8"):
        quantise(make(2), 2, "int4")
    with pytest.raises(KernelError, match="do not divide into 5 heads"):
        quantise(make(2), 5, "int8")
