"""Scores: the tiled path against the reference, and what must hold of any scores."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msa_kernels import (
    KernelError,
    chunk_scores,
    document_scores,
    reference,
    select_chunks,
    top_documents,
)
from msa_kernels.scores import segment_max
from torch.library import opcheck
from torch.nn.functional import normalize as unit

from msa_train.bench.runner import tensors_mb
from tests.kernels.kernel_cases import (
    CASES,
    DTYPES,
    FAR_ROWS,
    FAR_WIDTH,
    TOLERANCE,
    check_compiled,
    cu,
    error_ratio,
    far_rows,
    gradients,
    routings,
    strided,
    torch_only,
)

# A tile of one chunk, tiles that cut documents, and everything at once.
SCRATCH = st.sampled_from([1e-5, 2e-3, 64.0])


@given(routings(), SCRATCH)
@CASES
def test_document_scores_match_the_reference(case, scratch_mb):
    expected = reference.document_scores(*case.arguments())
    actual = document_scores(*case.arguments(), scratch_mb=scratch_mb)
    assert error_ratio(actual, expected) < 1e-6


@DTYPES
@given(case=routings(), scratch_mb=SCRATCH)
@CASES
def test_document_score_gradients_match_the_reference(dtype, case, scratch_mb):
    case = case.in_dtype(dtype)
    inputs = [case.query.requires_grad_(), case.keys.requires_grad_()]
    expected = reference.document_scores(*case.arguments())
    actual = document_scores(*case.arguments(), scratch_mb=scratch_mb)
    weight = torch.randn(expected.shape, dtype=dtype)
    for a, b in zip(*(gradients(x, inputs, weight) for x in (actual, expected)), strict=True):
        assert error_ratio(a, b) < TOLERANCE[dtype]


@DTYPES
@given(case=routings(), scratch_mb=SCRATCH, k=st.integers(1, 4))
@CASES
def test_chunk_scores_match_the_reference(dtype, case, scratch_mb, k):
    case = case.in_dtype(dtype)
    inputs = [case.query.requires_grad_(), case.keys.requires_grad_()]
    _, best = top_documents(document_scores(*case.arguments()).detach(), k)
    index = select_chunks(best, case.chunk_cu)
    given_ = (case.query, case.query_cu, case.keys, *index)
    expected = reference.chunk_scores(*given_)
    actual = chunk_scores(*given_, scratch_mb=scratch_mb)
    assert error_ratio(actual, expected) < TOLERANCE[dtype]
    weight = torch.randn(expected.shape, dtype=dtype)
    for a, b in zip(*(gradients(x, inputs, weight) for x in (actual, expected)), strict=True):
        assert error_ratio(a, b) < TOLERANCE[dtype]


@given(routings())
@CASES
def test_chunk_scores_reach_the_document_score(case):
    scores = document_scores(*case.arguments())
    index, index_cu = select_chunks(top_documents(scores, 99)[1], case.chunk_cu)
    parts = chunk_scores(case.query, case.query_cu, case.keys, index, index_cu)
    document = torch.searchsorted(case.chunk_cu, index, right=True) - 1
    context = torch.searchsorted(index_cu, torch.arange(len(index)), right=True) - 1
    best = torch.full_like(scores, -math.inf)
    best.index_put_((context, document), parts)  # ones that follow overwrite
    for c, d, s in zip(context.tolist(), document.tolist(), parts.tolist(), strict=True):
        best[c, d] = max(float(best[c, d]), s)
    torch.testing.assert_close(best, scores)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 3), st.booleans())
@CASES
def test_segment_max_finds_the_first_maximum(lengths, gap, whole_numbers):
    starts = cu(n + gap for n in lengths)
    values = torch.randn(2, int(starts[-1]))
    values = values.round() if whole_numbers else values
    best, place = segment_max(values, starts[:-1], torch.tensor(lengths), True)
    for i, length in enumerate(lengths):
        part = values[:, int(starts[i]) : int(starts[i]) + length]
        assert torch.equal(best[:, i], part.amax(1))
        first = [row.index(max(row)) for row in part.tolist()]
        assert (place[:, i] - starts[i]).tolist() == first


def one_bank(lengths, tokens=5, width=8):
    """Unit vectors as in use: scores are cosines, and an absolute bound means something."""
    chunk_cu, query_cu = cu(lengths), cu([tokens])
    query, keys = unit(torch.randn(tokens, width)), unit(torch.randn(int(chunk_cu[-1]), width))
    return query, query_cu, keys, chunk_cu, torch.tensor([0]), cu([len(lengths)])


def test_permuting_documents_permutes_scores():
    lengths = [3, 1, 0, 4, 2]
    query, query_cu, keys, chunk_cu, bank, bank_cu = one_bank(lengths)
    order = torch.randperm(len(lengths))
    rows = torch.cat([torch.arange(int(chunk_cu[d]), int(chunk_cu[d + 1])) for d in order])
    shuffled_cu = cu(lengths[d] for d in order)
    scores = document_scores(query, query_cu, keys, chunk_cu, bank, bank_cu)
    shuffled = document_scores(query, query_cu, keys[rows], shuffled_cu, bank, bank_cu)
    torch.testing.assert_close(shuffled, scores[:, order])


def test_adding_a_document_lowers_no_other():
    query, query_cu, keys, chunk_cu, bank, bank_cu = one_bank([3, 1, 4, 2])
    scores = document_scores(query, query_cu, keys, chunk_cu, bank, bank_cu)
    fewer = document_scores(query, query_cu, keys[:8], chunk_cu[:-1], bank, cu([3]))
    torch.testing.assert_close(fewer, scores[:, :3], rtol=0, atol=1e-6)


@given(st.integers(0, 9), st.integers(1, 6), st.booleans())
@CASES
def test_searching_two_halves_and_merging_is_one_search(cut, k, whole_numbers):
    query, query_cu, keys, chunk_cu, bank, _ = one_bank([1, 2, 1, 3, 1, 1, 2, 0, 1])
    if whole_numbers:
        query, keys = (3 * query).round(), (3 * keys).round()
    whole = top_documents(document_scores(query, query_cu, keys, chunk_cu, bank, cu([9])), k)
    values, index = [], []
    for low, high in ((0, cut), (cut, 9)):
        part_cu = chunk_cu[low : high + 1] - chunk_cu[low]
        part = keys[chunk_cu[low] : chunk_cu[high]]
        scores = document_scores(query, query_cu, part, part_cu, bank, cu([high - low]))
        best, found = top_documents(scores, k)
        values.append(best)
        index.append(torch.where(found >= 0, found + low, -1))
    merged, order = torch.cat(values, 1).sort(dim=1, descending=True, stable=True)
    found = torch.cat(index, 1).gather(1, order)[:, : whole[1].shape[1]]
    torch.testing.assert_close(merged[:, : found.shape[1]], whole[0], rtol=0, atol=1e-6)
    assert torch.equal(found, whole[1])


@torch_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_are_scored_in_float32(dtype):
    query, query_cu, keys, *rest = one_bank([3, 1, 4])
    scores = document_scores(query, query_cu, keys.to(dtype), *rest)
    expected = document_scores(query, query_cu, keys.to(dtype).float(), *rest)
    assert scores.dtype == torch.float32 and torch.equal(scores, expected)


@pytest.mark.parametrize("tokens", [(9,), (1,) * 6, (3,)], ids=["many", "few each", "few"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_queries_meet_narrow_keys_within_the_certified_bound(dtype, tokens):
    """Of any length: two narrow parts of a short query vector must not underflow."""
    width, chunk_cu, query_cu = 24, cu([2, 1, 3]), cu(tokens)
    keys = torch.randn(6, width).to(dtype)
    lengths = keys.double().norm(dim=1)
    powers = torch.tensor([-90, -60, -24, -13, -2, 0, 9, 40, 90])[: sum(tokens)]
    query = torch.randn(sum(tokens), width) * torch.exp2(powers.float())[:, None]
    query[0, 1:] *= 1e-6  # small beside the largest value of its row
    bank = torch.zeros(len(tokens), dtype=torch.int64), cu([3])
    found = document_scores(query, query_cu, keys, chunk_cu, *bank)
    entries = torch.arange(6).repeat(len(tokens)), cu([6] * len(tokens))
    of_chunks = chunk_scores(query, query_cu, keys, *entries).view(-1, 6)
    for context, (first, end) in enumerate(itertools.pairwise(query_cu.tolist())):
        rows = range(first, end)
        bound = (width + 128) * 2.0**-23 * max(float(query[r].double().norm()) for r in rows)
        exact = [max(brute_product(query[r], key) for r in rows) for key in keys]
        for chunk in range(6):
            assert abs(float(of_chunks[context, chunk]) - exact[chunk]) <= bound * lengths[chunk]
        for document, (low, high) in enumerate(itertools.pairwise(chunk_cu.tolist())):
            off = abs(float(found[context, document]) - max(exact[low:high]))
            assert off <= bound * max(lengths[low:high])


def brute_product(a, b):
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_strides_change_nothing():
    query, keys = torch.randn(4, 6), torch.randn(6, 6)
    chunks, entries = cu([1, 3, 2]), (torch.tensor([0, 5, 3]), cu([2, 1]))
    layout = cu([1, 3]), chunks, torch.zeros(2, dtype=torch.int64), cu([3])

    def run(x, y, query_cu, *given):
        x, y = (each.detach().requires_grad_() for each in (x, y))
        scores = document_scores(x, query_cu, y, *given[:3])
        chosen = chunk_scores(x, query_cu, y, *given[3:])
        total = scores.square().sum() + chosen.square().sum()
        return scores, chosen, *torch.autograd.grad(total, (x, y))

    given = query, keys, *layout, *entries
    for ours, plain in zip(run(*map(strided, given)), run(*given), strict=True):
        torch.testing.assert_close(ours, plain)


def test_a_gradient_reads_nothing_that_has_no_part_in_it():
    """Documents without chunks and of other banks name no row: NaN lies in front of the keys."""
    query, keys = torch.randn(4, 8), torch.full((11, 8), math.nan)
    keys[1:-1] = torch.randn(9, 8)
    keys = keys[1:-1].requires_grad_()
    layout = cu([3, 0, 4, 2]), torch.tensor([0, 1, 0]), cu([2, 2])
    inputs = [query.requires_grad_(), keys]
    expected, actual = (
        score(query, cu([1, 2, 1]), keys, *layout)
        for score in (reference.document_scores, document_scores)
    )
    weight = torch.randn(expected.shape)
    for a, b in zip(*(gradients(x, inputs, weight) for x in (actual, expected)), strict=True):
        assert error_ratio(a, b) < 1e-6


def test_autocast_does_not_lower_the_precision_of_scores():
    case = one_bank([3, 1, 4])
    expected = document_scores(*case)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(document_scores(*case), expected)


@torch_only
def test_scratch_stays_under_the_budget():
    case = one_bank([2] * 3000, tokens=40, width=16)
    half = (*case[:2], case[2].bfloat16(), *case[3:])
    for arguments in (case, half):
        assert tensors_mb(lambda a=arguments: document_scores(*a, scratch_mb=0.5)) < 0.6
    query = case[0].requires_grad_()
    expected_mb = 3 * 3000 * 8 / 2**20 + 0.6  # scores and their two indices come on top
    assert tensors_mb(lambda: document_scores(query, *case[1:], scratch_mb=0.5)) < expected_mb


def test_impossible_arguments_are_refused():
    query, query_cu, keys, chunk_cu, bank, bank_cu = one_bank([3, 1, 4])
    with pytest.raises(KernelError, match="chunk_cu ends at 8, but there are 7"):
        document_scores(query, query_cu, keys[:-1], chunk_cu, bank, bank_cu)
    with pytest.raises(KernelError, match=r"query is torch\.int64"):
        document_scores(query.long(), query_cu, keys, chunk_cu, bank, bank_cu)
    with pytest.raises(KernelError, match=r"need \[N, V\]"):
        chunk_scores(query, query_cu, keys[:, :3], torch.tensor([0]), cu([1]))


def test_scores_of_far_chunks(tmp_path):
    query = torch.ones(1, FAR_WIDTH)
    index = torch.tensor([0, FAR_ROWS - 65, FAR_ROWS - 1])
    scores = chunk_scores(query, cu([1]), far_rows(tmp_path), index, cu([3]))
    assert scores.tolist() == [0, 0, FAR_WIDTH]


def test_operators_are_what_they_say_and_compile():
    query, keys = torch.randn(5, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    query_cu, bank, bank_cu = cu([3, 0, 2]), torch.tensor([0, 0, 1]), cu([2, 1])
    scored = (query, query_cu, keys, cu([3, 4, 2]), bank, bank_cu)
    chosen = (query, query_cu, keys, torch.tensor([0, 1, 2, 7, 8]), cu([3, 0, 2]))
    operators, budget = torch.ops.msa_kernels, float(1 << 26)
    opcheck(operators.document_scores.default, (*scored, budget, True))
    opcheck(operators.entry_scores.default, (*chosen, budget))
    check_compiled(document_scores, scored)
    check_compiled(chunk_scores, chosen)
