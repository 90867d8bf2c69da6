"""The search: exact in every form of the keys, however documents are divided, against loops."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msa_kernels import products

from msa_train.errors import ConfigError
from msa_train.memory.search.loader import Share
from msa_train.memory.search.searcher import LocalSearcher, best_of
from msa_train.memory.search.settings import KEY_FORMS
from msa_train.model.config import RouterConfig
from tests.memory.search.random_memory import (
    HEADS,
    LAYER,
    ROUTER,
    WIDTH,
    by_loops,
    memory,
    part,
    questions,
    searcher_of,
)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    form=st.sampled_from(KEY_FORMS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    twins=st.booleans(),
    data=st.data(),
)
def test_search_equals_loops_in_every_form_and_division(
    counts, lengths, seed, form, dtype, twins, data
):
    keys, cu = memory(counts, seed, twins)
    keys = keys.to(dtype).float()  # what is stored
    query, query_cu = questions(lengths, seed + 1)
    there = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    )
    removed = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    )
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=3))})
    searcher = searcher_of(counts, keys, cu, cuts, form, ~removed, dtype)
    found = searcher.best(LAYER, query, query_cu, 3, there)
    expected = by_loops(query, query_cu, keys, cu, 3, there & ~removed)
    for row, best in enumerate(expected):
        places = [place for place in found.places[row].tolist() if place >= 0]
        assert places == [place for _, place in best]
        assert found.scores[row, : len(best)].tolist() == [-score for score, _ in best]
        assert (found.scores[row, len(best) :] == -math.inf).all()
    asked = found.places.clone()
    assert torch.equal(searcher.score(LAYER, query, query_cu, asked), found.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", KEY_FORMS)
def test_one_vector_per_context_finds_what_loops_find(form, dtype, monkeypatch):
    """As if the processor multiplied every narrow number: also then nothing is lost."""
    monkeypatch.setattr(products, "_processor_has", lambda *features: True)
    monkeypatch.setattr(products, "GEMV_WIDTH", 64)
    gen, counts = torch.Generator().manual_seed(3), [1 + place % 3 for place in range(700)]
    drawn = torch.randn(sum(counts), HEADS, 32, generator=gen)
    drawn[100:400] = drawn[:1] + 0.01 * drawn[100:400]  # near one another: many are in doubt
    keys = torch.nn.functional.normalize(drawn, dim=2).flatten(1).to(dtype)
    cu = torch.tensor([0, *counts]).cumsum(0)
    query = keys[[0, 5, 300]].float() + 0.1 * torch.randn(3, 64, generator=gen)
    there, removed = torch.rand(2, 700, generator=gen) < torch.tensor([[0.8], [0.1]])
    searcher = searcher_of(counts, keys, cu, [0, 300, 301], form, ~removed, dtype)
    for contexts in (1, 3):
        given = query[:contexts], torch.arange(contexts + 1)
        found = searcher.best(LAYER, *given, 16, there)
        products_of_all = query[:contexts].double() @ keys.double().T
        for row in range(contexts):
            scores = [float(products_of_all[row, a:b].max()) for a, b in pairwise(cu.tolist())]
            known = [i for i in range(700) if there[i] and not removed[i]]
            exact = torch.tensor(scores, dtype=torch.float64).float().tolist()
            best = sorted(known, key=lambda place: (-exact[place], place))[:16]
            assert found.places[row].tolist() == best
            assert found.scores[row].tolist() == [exact[place] for place in best]


@pytest.mark.parametrize("form", KEY_FORMS)
def test_shards_of_several_ranks_find_what_one_finds(form):
    counts = [3, 1, 2, 5, 1, 1, 4, 2]
    keys, cu = memory(counts, 0, twins=True)
    query, query_cu = questions([3, 0, 2], 1)
    whole = searcher_of(counts, keys, cu, [0], form).best(LAYER, query, query_cu, 4)
    for shares in ((1, 1), (1, 0, 3), (0, 1), (5, 1, 1, 1)):
        found, held = [], []
        for rank in range(len(shares)):
            first, end = Share(rank, shares).rows(cu)
            held += range(first, end)
            own = cu[first : end + 1]
            one = part(first, keys[own[0] : own[-1]], own - own[0], form)
            live = torch.ones(len(counts), dtype=torch.bool)
            found.append(LocalSearcher([one], ROUTER, live).best(LAYER, query, query_cu, 4))
        assert held == list(range(len(counts)))
        both = best_of(found, 4)
        assert torch.equal(both.places, whole.places) and torch.equal(both.scores, whole.scores)


def test_states_come_in_order_from_several_parts():
    counts = [3, 1, 2, 5, 1]
    keys, cu = memory(counts, 0)
    searcher = searcher_of(counts, keys, cu, [0, 2, 3])
    places = torch.tensor([1, 2, 4])
    expected = torch.cat([keys[cu[place] : cu[place + 1]] for place in places.tolist()])
    states = searcher.states(LAYER, places)
    assert torch.equal(states.key, expected)
    assert torch.equal(states.v.flatten(1), -expected)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    form=st.sampled_from(KEY_FORMS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    spread=st.sampled_from([0.0, 2.0]),
)
def test_raw_dot_products_are_searched_exactly_whatever_the_lengths(seed, form, dtype, spread):
    gen = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (40,), generator=gen).tolist()
    keys, cu = memory(counts, seed)
    keys *= (torch.randn(len(keys), 1, generator=gen) * spread).exp() * 7
    keys = keys.clamp(-60_000, 60_000).to(dtype).float()  # no bank has infinite keys
    query, query_cu = questions([3, 1], seed + 1)
    query *= (torch.randn(len(query), 1, generator=gen) * spread).exp() / 30
    router = RouterConfig(top_k=3, similarity="dot")
    everyone = torch.ones(len(counts), dtype=torch.bool)
    searcher = LocalSearcher([part(0, keys, cu, form, router, dtype)], router, everyone)
    found = searcher.best(LAYER, query, query_cu, 3)
    for row, best in enumerate(by_loops(query, query_cu, keys, cu, 3, everyone)):
        assert found.places[row].tolist() == [place for _, place in best]
        assert found.scores[row].tolist() == [-score for score, _ in best]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", [{"head_reduce": "max"}, {"query_reduce": "mean"}])
def test_published_reductions_are_searched_head_by_head(reduce, dtype):
    router = RouterConfig(top_k=2, gate="none", **reduce)
    counts = [2, 1, 3]
    keys, cu = memory(counts, 0)
    keys = keys.to(dtype).float()
    query = torch.randn(4, 4, WIDTH // HEADS, generator=torch.Generator().manual_seed(1))
    query_cu = torch.tensor([0, 3, 4])
    searcher = LocalSearcher(
        [part(0, keys, cu, "stored", router, dtype)], router, torch.tensor([True, True, False])
    )
    found = searcher.best(LAYER, query, query_cu, 2)
    wide = keys.unflatten(1, (HEADS, -1)).repeat_interleave(2, 1)
    for context, rows in enumerate((range(3), range(3, 4))):
        scores = torch.einsum("thd,chd->htc", query[list(rows)], wide)
        heads = scores.amax(0) if "head_reduce" in reduce else scores.mean(0)
        chunks = heads.mean(0) if "query_reduce" in reduce else heads.amax(0)
        best = [float(chunks[cu[d] : cu[d + 1]].max()) for d in range(2)]
        assert found.scores[context].tolist() == pytest.approx(sorted(best, reverse=True))
    again = searcher.score(LAYER, query, query_cu, found.places)
    torch.testing.assert_close(again, found.scores)
    for form in (
        "int8",
        "fp8",
        "bfloat16",
    ):  # float16 would be rounded, and nobody knew by how much
        if form == "bfloat16" and dtype == torch.bfloat16:
            continue
        with pytest.raises(ConfigError, match=form):
            part(0, keys, cu, form, router, dtype)
