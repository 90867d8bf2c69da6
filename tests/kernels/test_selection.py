"""Selection of documents and their chunks against the reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import KernelError, reference, select_chunks, selection, top_documents

from tests.kernels.kernel_cases import CASES, cu


@given(
    st.integers(1, 4).flatmap(
        lambda m: st.lists(
            st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 0.5, 1.0]), min_size=m, max_size=m),
            max_size=12,
        ).map(lambda columns: torch.tensor(columns).reshape(-1, m).T)
    ),
    st.integers(1, 14),
)
@CASES
def test_selection_matches_the_reference(scores, k):
    values, index = top_documents(scores, k)
    expected_values, expected_index = reference.top_documents(scores, k)
    assert torch.equal(values, expected_values) and torch.equal(index, expected_index)
    chunk_cu = cu(d % 4 for d in range(scores.shape[1]))
    actual, expected = (f(index, chunk_cu) for f in (select_chunks, reference.select_chunks))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    st.lists(
        st.sampled_from([-math.inf, -2.5, -0.0, 0.0, 1e-30, -1e-30, 0.5, 3.0]),
        min_size=2,
        max_size=12,
    ),
    st.integers(1, 14),
)
@CASES
def test_an_accelerator_is_given_keys_that_order_as_scores_do(dtype, scores, k):
    scores = torch.tensor([scores, scores[::-1]]).to(dtype)
    expected = reference.top_documents(scores, k)
    found = selection._top_by_keys(scores, min(k, scores.shape[1]))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_impossible_arguments_are_refused():
    with pytest.raises(KernelError, match="k is 0"):
        top_documents(torch.zeros(1, 3), 0)
    with pytest.raises(KernelError, match=r"chunk_cu is torch\.int32"):
        select_chunks(torch.zeros(1, 1, dtype=torch.int64), cu([2]).int())
