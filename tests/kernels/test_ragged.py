"""Cumulative lengths and padded batches against what they say, written as loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import chunk_offsets
from msa_kernels.ragged import (
    chunk_token_offsets,
    cumulative,
    padded_rows,
    repeated,
    segment_ids,
    similar_lengths,
)

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=9)


def cu(lengths):
    return cumulative(torch.tensor(lengths, dtype=torch.int64))


@given(LENGTHS, st.integers(1, 5))
def test_chunks_cover_documents_and_only_the_last_is_short(lengths, size):
    chunks = [min(size, length - start) for length in lengths for start in range(0, length, size)]
    assert chunk_token_offsets(cu(lengths), size).tolist() == cu(chunks).tolist()
    expected = [0]
    for length in lengths:
        expected.append(expected[-1] + -(-length // size))
    assert chunk_offsets(cu(lengths), size).tolist() == expected


@given(LENGTHS)
def test_every_row_knows_its_sequence(lengths):
    expected = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert segment_ids(cu(lengths)).tolist() == expected


@given(LENGTHS, st.integers(0, 9), st.integers(1, 40))
def test_groups_hold_every_sequence_once_within_the_limit(lengths, slack, limit):
    groups = similar_lengths(lengths, slack=slack, waste=0.1, limit=limit)
    present = [i for i, length in enumerate(lengths) if length]
    assert sorted(i for group in groups for i in group) == present
    for group in groups:
        assert group == sorted(group)
        real, padded = sum(lengths[i] for i in group), len(group) * max(lengths[i] for i in group)
        assert len(group) == 1 or (padded <= limit and padded - real <= max(slack, 0.1 * real))


def test_sequences_are_grouped_only_where_padding_is_cheap():
    assert similar_lengths([3, 100, 0, 4, 98], slack=5, waste=0) == [[1, 4], [0, 3]]
    assert similar_lengths([3, 100, 0, 4, 98]) == [[0, 1, 3, 4]]


@given(LENGTHS, st.integers(0, 3))
def test_padding_repeats_a_sequences_last_row(lengths, more):
    width = max(lengths) + more
    rows, real = padded_rows(cu(lengths), torch.arange(len(lengths)), width)
    for i, (length, start) in enumerate(zip(lengths, cu(lengths).tolist(), strict=False)):
        last = start + length - 1
        expected = [min(start + j, last) if length else 0 for j in range(width)]
        assert rows[i].tolist() == expected
        assert real[i].tolist() == [j < length for j in range(width)]


def test_repeated_values_are_those_of_torch():
    values, counts = torch.tensor([5, -2, 7, 7]), torch.tensor([2, 0, 1, 3])
    assert torch.equal(
        repeated(values, counts, int(counts.sum())), values.repeat_interleave(counts)
    )
