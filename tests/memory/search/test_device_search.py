"""The search in one table of keys: the search in parts, and plain loops, say the same."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_train.memory.search import device_search
from msa_train.memory.search.device_search import DeviceSearch
from msa_train.memory.search.settings import KEY_FORMS
from tests.memory.search.random_memory import (
    LAYER,
    by_loops,
    memory,
    questions,
    searcher_of,
    table_searcher,
)


def same(found, expected):
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.scores, expected.scores)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    form=st.sampled_from(KEY_FORMS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    twins=st.booleans(),
    k=st.sampled_from([1, 3, 8]),
)
def test_a_table_in_any_order_finds_what_parts_and_loops_find(
    counts, lengths, seed, form, dtype, twins, k
):
    chance = random.Random(seed)
    keys, cu = memory(counts, seed, twins)
    keys = keys.to(dtype).float()
    query, query_cu = questions(lengths, seed + 1)
    live, allowed = (
        torch.tensor([chance.random() < share for _ in counts]) for share in (0.9, 0.7)
    )
    cuts = sorted({0, *(chance.randrange(len(counts)) for _ in range(3))})
    given = counts, keys, cu, cuts, form, live, dtype
    plain = searcher_of(*given)
    table = table_searcher(*given, order=chance.sample(range(len(cuts)), len(cuts)))
    assert isinstance(table.certified(LAYER), DeviceSearch)
    for only in (None, allowed):
        found = table.best(LAYER, query, query_cu, k, only)
        same(found, plain.best(LAYER, query, query_cu, k, only))
        there = live if only is None else live & only
        for row, best in enumerate(by_loops(query, query_cu, keys, cu, k, there)):
            assert found.places[row, : len(best)].tolist() == [place for _, place in best]
            assert found.scores[row, : len(best)].tolist() == [-score for score, _ in best]
    places = torch.tensor([[chance.randrange(-1, len(counts)) for _ in range(3)] for _ in lengths])
    scores = table.score(LAYER, query, query_cu, places)
    assert torch.equal(scores, plain.score(LAYER, query, query_cu, places))


@pytest.mark.parametrize("form", ["stored", "int8"])
def test_more_documents_in_doubt_than_listed_are_all_looked_at(form):
    counts = [2] * 300
    keys, cu = memory([1, 1], 0)
    keys = keys[:1].expand(600, -1).clone()  # every document scores alike
    query, query_cu = questions([2, 1], 1)
    live = torch.ones(300, dtype=torch.bool)
    live[:7] = False
    cu = torch.arange(301) * 2
    found = table_searcher(counts, keys, cu, [0, 100], form, live).best(LAYER, query, query_cu, 3)
    assert found.places.tolist() == [[7, 8, 9]] * 2


@pytest.mark.parametrize("form", KEY_FORMS)
def test_exact_scores_do_not_depend_on_how_much_is_held_at_once(form, monkeypatch):
    counts = [1 + place % 4 for place in range(200)]
    keys, cu = memory(counts, 0)
    query, query_cu = questions([3, 0, 5], 1)
    live = torch.ones(200, dtype=torch.bool)
    given = counts, keys, cu, [0, 60, 61], form, live
    expected = searcher_of(*given).best(LAYER, query, query_cu, 5)
    same(table_searcher(*given).best(LAYER, query, query_cu, 5), expected)
    monkeypatch.setattr(device_search, "_ON_HOST", 0)  # the device, for rounded keys too
    same(table_searcher(*given).best(LAYER, query, query_cu, 5), expected)
    monkeypatch.setattr(device_search, "_BYTES", 1)
    monkeypatch.setattr(device_search, "_FEW_VECTORS", 0)
    same(table_searcher(*given).best(LAYER, query, query_cu, 5), expected)


@pytest.mark.parametrize("form", ["stored", "int8"])
def test_a_context_with_many_pairs_takes_no_room_for_the_others(form, monkeypatch):
    counts, held, products = [2] * 200, 1 << 17, DeviceSearch._exact_of
    keys, cu = memory(counts, 0)
    query, query_cu = questions([2] * 16, 1)
    search = table_searcher(counts, keys, cu, [0], form, torch.ones(200, dtype=torch.bool))
    search, sizes = search.certified(LAYER), []

    def counted(self, vectors, empty, context, row):
        sizes.append(len(vectors) * int(torch.bincount(context).max()))
        return products(self, vectors, empty, context, row)

    context = torch.tensor([0] * 200 + list(range(1, 16)))
    row = torch.tensor([*range(200), *[7] * 15])
    expected = search.exact(query, query_cu, context, row)
    monkeypatch.setattr(DeviceSearch, "_exact_of", counted)
    monkeypatch.setattr(device_search, "_BYTES", held)
    assert torch.equal(search.exact(query, query_cu, context, row), expected)
    assert 1 < len(sizes) < 20 and max(sizes) * 2 * 12 * keys.shape[1] <= held


@pytest.mark.parametrize(
    ("products", "taken"), [(1536, [True]), (1535, [False]), (640, [False]), (639, [])]
)
def test_the_host_forms_no_more_products_than_it_should(products, taken, monkeypatch):
    """Of two contexts with 3 and 2 (as good as 3) vectors of 8 values, 32 chunks of each in doubt;
    the 5 vectors come along where there might be 16. Else the device scores them."""
    counts, found, on_host = [2] * 16, [], DeviceSearch._exact_on_host
    keys, cu = memory(counts, 0)
    query, query_cu = questions([3, 2], 1)
    given = counts, keys, cu, [0, 5], "int8", torch.ones(16, dtype=torch.bool)
    search = table_searcher(*given).certified(LAYER)

    def recorded(self, *given):
        scores = on_host(self, *given)
        found.append(scores is not None)
        return scores

    monkeypatch.setattr(DeviceSearch, "_exact_on_host", recorded)
    monkeypatch.setattr(device_search, "_ON_HOST", products)
    context, row, scores = search.best_pairs(query, query_cu, 16)  # all documents
    assert found == taken and len(row) == 32
    plain = searcher_of(*given).certified(LAYER)
    assert torch.equal(scores, plain.exact(query, query_cu, context, row))


@pytest.mark.parametrize("form", KEY_FORMS)
def test_candidates_are_those_of_a_search_in_parts(form):
    counts = [1 + place % 3 for place in range(120)]
    keys, cu = memory(counts, 2)
    query, query_cu = questions([2, 4], 3)
    live = torch.ones(120, dtype=torch.bool)
    given = counts, keys, cu, [0, 50], form, live
    found = table_searcher(*given, order=[1, 0]).certified(LAYER).candidates(query, query_cu, 5)
    best = searcher_of(*given).best(LAYER, query, query_cu, 5).places
    for context in range(2):
        rows = found[1][found[0] == context]
        assert (rows.diff() > 0).all() and set(best[context].tolist()) <= set(rows.tolist())
        assert len(rows) <= {"fp8": 60, "bfloat16": 20}.get(form, 12)


def test_what_lies_in_rows_of_nobody_is_never_found():
    counts, live = [1, 1, 2, 1], torch.ones(4, dtype=torch.bool)
    keys, cu = memory(counts, 0)
    query, query_cu = questions([2], 1)
    for form in ("stored", "int8"):
        searcher = table_searcher(counts, keys, cu, [0, 2, 3], form, live)
        expected = searcher.best(LAYER, query, query_cu, 2)
        middle = searcher.parts[1].keys[LAYER].placed
        searched = middle.own(2)
        for part in [searched] if form == "stored" else vars(searched).values():
            part.fill_(float("nan") if part.is_floating_point() else 127)
        del searcher.parts[1]
        rest = type(searcher)(searcher.parts, searcher._router, live)
        whole = rest.best(LAYER, query, query_cu, 4)
        assert 2 not in whole.places and whole.places.shape == (1, 3)
        kept = [place for place in expected.places[0].tolist() if place != 2]
        assert whole.places[0, : len(kept)].tolist() == kept
