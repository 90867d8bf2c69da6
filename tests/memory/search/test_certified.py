"""The certified search: candidates hold the best and no more than the bound asks; exact scores."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msa_kernels import BlockScores

from msa_train.memory.search import certified
from msa_train.memory.search.certified import CertifiedSearch
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.settings import KEY_FORMS
from tests.memory.search.random_memory import HEADS, ROUTER, memory, questions


def search_of(counts, form, cuts=(0,), seed=0):
    """A search over parts that begin at `cuts`, and the exact score of every chunk's document."""
    keys, cu = memory(counts, seed)
    parts = [
        LayerKeys(keys[cu[a] : cu[b]], cu[a : b + 1] - cu[a], ROUTER, HEADS, form)
        for a, b in zip(cuts, [*cuts[1:], len(counts)], strict=True)
    ]
    return CertifiedSearch(parts, ROUTER), keys, cu


def exact_scores(query, query_cu, keys, cu):
    """[m, n] float64."""
    chunks = query.double() @ keys.double().T
    return torch.stack(
        [
            torch.stack([chunks[q:r, a:b].max() for a, b in pairwise(cu)])
            for q, r in pairwise(query_cu)
        ]
    )


@pytest.mark.parametrize("form", KEY_FORMS)
def test_candidates_hold_the_best_and_few_others(form):
    counts = [1 + place % 4 for place in range(400)]
    search, keys, cu = search_of(counts, form, [0, 150, 151])
    query, query_cu = questions([3, 1, 5], 1)
    gone = torch.arange(400) % 7 == 0
    context, row = search.candidates(query, query_cu, 16, gone)
    exact = exact_scores(query, query_cu, keys, cu).masked_fill(gone, -torch.inf)
    for which in range(3):
        rows = row[context == which]
        assert (rows.diff() > 0).all() and not gone[rows].any()
        assert set(exact[which].topk(16).indices.tolist()) <= set(rows.tolist())
        assert len(rows) <= {"bfloat16": 40, "fp8": 80}.get(form, 24)
    scores = search.exact(query, query_cu, context, row)
    assert torch.equal(scores, exact[context, row].float())


def test_scores_depend_neither_on_batches_nor_on_parts(monkeypatch):
    counts, pairs = [2, 1, 3, 1, 2], (torch.tensor([0, 0, 1, 1]), torch.tensor([4, 0, 1, 4]))
    query, query_cu = questions([2, 3], 1)
    whole, _, _ = search_of(counts, "stored")
    scores = whole.exact(query, query_cu, *pairs)
    divided, _, _ = search_of(counts, "int8", [0, 1, 4])
    assert torch.equal(divided.exact(query, query_cu, *pairs), scores)
    monkeypatch.setattr(certified, "_BYTES", 1)  # a pair at once
    assert torch.equal(whole.exact(query, query_cu, *pairs), scores)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    error=st.sampled_from([0.0, 0.4, 1.0, 2.5]),
    block=st.integers(1, 8),
    k=st.integers(1, 5),
)
def test_no_block_that_matters_is_left_out(scores, error, block, k):
    row = torch.tensor(scores).float()
    row[row == -5] = -torch.inf
    k = min(k, len(row))
    padded = torch.full((-(-len(row) // block) * block,), -torch.inf)
    padded[: len(row)] = row
    blocks = padded.view(1, -1, block)
    rough = BlockScores(blocks, blocks.amax(2), len(row))
    assert torch.equal(rough.scores, row[None])
    for errors in (error, torch.full(blocks.shape[1:], error)):
        found = certified._candidates_of(rough, 0, k, certified._Bound([1.0], errors, 0.0))
        least = float((row - error).topk(k).values[-1])
        expected = (row + error >= least) & (row > -torch.inf)
        assert found.tolist() == expected.nonzero().squeeze(1).tolist()
