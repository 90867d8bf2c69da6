"""Prepared keys give document_scores, and block maxima that are those of the scores."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msa_kernels import (
    KernelError,
    PreparedKeys,
    document_scores,
    prepared,
    prepared_scores,
    products,
    quantise,
    reference,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def scored(keys, cu, query, query_cu):
    bank = torch.zeros(len(query_cu) - 1, dtype=torch.int64), torch.tensor([0, len(cu) - 1])
    return reference.document_scores(query, query_cu, keys, cu, *bank)


def longest(rows):
    return float(rows.float().norm(dim=1).amax()) if len(rows) else 0.0


def checked(found, expected, rounding=0.0):
    """rounding: what a search that multiplies narrow numbers may be off by."""
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-5 + rounding)
    contexts, blocks, size = found.blocks.shape
    assert (blocks - 1) * size < max(1, found.documents) and found.documents == expected.shape[1]
    behind = found.blocks.reshape(contexts, blocks * size)[:, found.documents :]
    assert (behind == -math.inf).all() and torch.equal(found.maxima, found.blocks.amax(2))


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), max_size=30),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    tile=st.integers(1, 9),
    data=st.data(),
)
def test_scores_equal_the_reference(counts, lengths, dtype, seed, tile, data):
    gen = torch.Generator().manual_seed(seed)
    keys = torch.randn(sum(counts), 6, generator=gen).to(dtype)
    cu, query_cu = (torch.tensor([0, *each]).cumsum(0) for each in (counts, lengths))
    query = torch.randn(sum(lengths), 6, generator=gen)
    gone = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "TILE_CHUNKS", tile)
        patch.setattr(prepared, "BLOCK_DOCUMENTS", 2 * tile)
        search = PreparedKeys(keys, cu)
        found = prepared_scores([search], query, query_cu, gone.bool())
    expected = scored(keys.float(), cu, query, query_cu)
    rounding = search.rounding * longest(query) * longest(keys)
    assert (search.rounding > 0) <= (dtype == torch.bfloat16)
    checked(found, expected.masked_fill(gone.bool(), -math.inf), rounding)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_narrow_keys_are_scored_as_they_were_rounded(form):
    keys = torch.randn(500, 8)
    cu = torch.arange(0, 501, 5)
    small = quantise(keys, 2, form)
    query, query_cu = torch.randn(7, 8), torch.tensor([0, 4, 4, 7])
    checked(
        prepared_scores([PreparedKeys(small, cu)], query, query_cu),
        scored(small.dequantised(), cu, query, query_cu),
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_blocks_and_leave_torch_as_it_was(threads):
    before = torch.get_num_threads()
    keys, cu = torch.randn(30_000, 8), torch.arange(0, 30_001, 2)
    query, query_cu = torch.randn(20, 8), torch.tensor([0, 12, 20])
    try:
        torch.set_num_threads(threads)
        checked(
            prepared_scores([PreparedKeys(keys, cu)], query, query_cu),
            scored(keys, cu, query, query_cu),
        )
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_forked_process_searches_without_its_parents_threads():
    before = torch.get_num_threads()
    chunks = 2 * products.TILE_CHUNKS
    keys, cu, query = torch.randn(chunks, 4), torch.arange(chunks + 1), torch.randn(3, 4)
    search = PreparedKeys(keys, cu)
    try:
        torch.set_num_threads(2)
        expected = prepared_scores([search], query, torch.tensor([0, 3])).scores
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # as every forked process must: torch's threads are gone
            same = torch.equal(
                prepared_scores([search], query, torch.tensor([0, 3])).scores, expected
            )
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_one_document_longer_than_a_tile():
    keys, cu = torch.randn(9000, 4), torch.tensor([0, 1, 8990, 9000])
    query, query_cu = torch.randn(3, 4), torch.tensor([0, 3])
    checked(
        prepared_scores([PreparedKeys(keys, cu)], query, query_cu),
        scored(keys, cu, query, query_cu),
    )


def test_what_does_not_fit_is_refused():
    keys = torch.randn(4, 6)
    with pytest.raises(KernelError, match="chunk_cu"):
        PreparedKeys(keys, torch.tensor([0, 3]))
    with pytest.raises(KernelError, match="query"):
        prepared_scores(
            [PreparedKeys(keys, torch.tensor([0, 4]))], torch.randn(2, 5), torch.tensor([0, 2])
        )
    with pytest.raises(KernelError, match="use document_scores"):
        PreparedKeys(keys.to("meta"), torch.tensor([0, 4]))


def test_no_contexts_have_no_scores():
    part = PreparedKeys(torch.randn(4, 6), torch.tensor([0, 1, 4]))
    found = prepared_scores([part], torch.empty(0, 6), torch.tensor([0]))
    assert found.scores.shape == (0, 2) and found.maxima.shape == (0, 1)


def test_parts_are_scored_as_one():
    counts, query, query_cu = [3, 1, 0, 2, 1, 1, 4], torch.randn(5, 6), torch.tensor([0, 2, 5])
    keys, cu = torch.randn(sum(counts), 6), torch.tensor([0, *counts]).cumsum(0)
    parts = [
        PreparedKeys(keys[cu[a] : cu[b]], cu[a : b + 1] - cu[a])
        for a, b in ((0, 2), (2, 3), (3, 3), (3, 7))
    ]
    gone = torch.tensor([False, True, False, False, True, False, False])
    expected = scored(keys, cu, query, query_cu).masked_fill(gone, -math.inf)
    checked(prepared_scores(parts, query, query_cu, gone), expected)


def test_scores_are_those_of_the_operator():
    keys, cu = torch.randn(4000, 16), torch.arange(0, 4001, 4)
    query, query_cu = torch.randn(50, 16), torch.arange(0, 51, 10)
    bank = torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1000])
    expected = document_scores(query, query_cu, keys, cu, *bank)
    torch.testing.assert_close(
        prepared_scores([PreparedKeys(keys, cu)], query, query_cu).scores, expected
    )


@torch.inference_mode()
def test_threads_write_what_was_made_in_inference_mode(monkeypatch):
    monkeypatch.setattr(products, "TILE_CHUNKS", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    keys, cu = torch.randn(9, 6), torch.arange(10)
    query, query_cu = torch.randn(3, 6), torch.tensor([0, 3])
    checked(
        prepared_scores([PreparedKeys(keys, cu)], query, query_cu),
        scored(keys, cu, query, query_cu),
    )
