"""What a search on a device costs: the same for any number of segments, and one wait a layer."""

import pytest
import torch

from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search import device_search
from msa_train.memory.search.in_memory import view_of
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import TierSettings
from tests.memory.ranks import banks
from tests.memory.search.random_memory import HEADS, LAYER, questions, searcher_of, table_searcher
from tests.memory.search.test_in_memory import encoded
from tests.memory.tiny import tiny_documents
from tests.pretend.cuda import counting, pretended_cuda

COUNTS = [1 + place % 3 for place in range(192)]
K = 3
LAUNCHES, ROUND = 30, 10  # a layer; and what a round's first layer may prepare for all
WIDTH = 32  # heads of 16 values: whole tiles of 8 bits


@pytest.fixture
def cuda():
    with pretended_cuda() as device:
        yield device


def keys():
    gen = torch.Generator().manual_seed(0)
    drawn = torch.randn(sum(COUNTS), HEADS, WIDTH // HEADS, generator=gen)
    cu = torch.tensor([0, *COUNTS]).cumsum(0)
    return torch.nn.functional.normalize(drawn, dim=2).flatten(1), cu


def asked(lengths, device="cpu"):
    query, query_cu = questions(lengths, 1, WIDTH)
    return query.to(device), query_cu.to(device)


@pytest.mark.parametrize(("segments", "contexts"), [(1, 32), (96, 1)])
@pytest.mark.parametrize("form", ["stored", "bfloat16", "int8"])
def test_a_layer_costs_the_same_for_any_number_of_segments(cuda, segments, contexts, form):
    counts = layer_costs(cuda, segments, contexts, form)
    assert (counts.syncs, counts.copies) == (1, 1), str(counts)
    assert counts.launches <= LAUNCHES, str(counts)


def test_what_is_too_much_for_the_host_takes_a_second_wait(cuda, monkeypatch):
    monkeypatch.setattr(device_search, "_ON_HOST", 0)
    counts = layer_costs(cuda, 96, 32, "int8")
    assert (counts.syncs, counts.copies) == (2, 3), str(counts)
    assert counts.launches <= LAUNCHES, str(counts)


def layer_costs(cuda, segments, contexts, form):
    """Of a search, all but a round's first, whose result is that of a search in parts."""
    full, cu = keys()
    dtype = torch.float32 if form == "stored" else torch.bfloat16
    full = full.to(dtype).float()
    cuts = range(0, len(COUNTS), len(COUNTS) // segments)
    live = torch.arange(len(COUNTS)) != 5
    given = COUNTS, full, cu, list(cuts), form, live, dtype
    expected = searcher_of(*given).best(LAYER, *asked([4] * contexts), K)
    searcher = table_searcher(*given, device=cuda)
    question = asked([4] * contexts, cuda)
    with torch.inference_mode():
        searcher.best(LAYER, *question, K)
        with counting() as counts:
            found = searcher.best(LAYER, *question, K)
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.scores, expected.scores)
    return counts


def test_a_rounds_first_layer_waits_no_more_than_the_others(cuda):
    full, cu = keys()
    searcher = table_searcher(COUNTS, full, cu, [0, 96], device=cuda)
    question = asked([4] * 8, cuda)
    with torch.inference_mode(), counting() as counts:
        searcher.best(LAYER, *question, K)
    assert counts.syncs == 1 and counts.launches <= LAUNCHES + ROUND, str(counts)


@pytest.mark.parametrize(("segments", "hot_mb"), [(1, 0), (12, 1)])
def test_a_layer_of_a_bank_is_searched_and_read_with_one_wait(tmp_path, segments, hot_mb):
    """Of a round, all but its first layer: scores, then K and V of what was found, in one copy."""
    counts = [[1 + (place + segment) % 3 for place in range(96 // segments)]
              for segment in range(segments)]  # fmt: skip
    bank = banks.write(tmp_path / "bank", counts, removed=[3])
    router, layers = banks.CONFIG.router, banks.CONFIG.router_layers
    question = banks.questions([4] * 32)
    expected = {layer: bank_view(bank, router).search(layer, *question) for layer in layers}
    with pretended_cuda() as cuda, torch.inference_mode():
        loader = BankLoader(TierSettings(hot_mb=hot_mb, prefetch=False), cuda)
        view = bank_view(bank, router, loader)
        question = [x.to(cuda) for x in question]
        for layer in layers:
            with counting() as counts:
                routing, k, v = view.search(layer, *question)
            plain, plain_k, plain_v = expected[layer]
            for ours, theirs in (
                (routing.documents, plain.documents), (routing.values, plain.values),
                (routing.chunk_index, plain.chunk_index), (routing.index_cu, plain.index_cu),
                (k, plain_k), (v, plain_v),
            ):  # fmt: skip
                assert torch.equal(ours.cpu(), theirs)
            assert torch.equal(routing.best_chunks(), plain.best_chunks())
        # What was found leaves the device; where it lies, and its states, come back.
        assert (counts.syncs, counts.copies) == (1, 3), str(counts)
        assert counts.launches <= LAUNCHES, str(counts)


def test_a_memory_without_a_bank_is_searched_where_its_states_are(cuda):
    documents, (pooled, chunk_cu) = tiny_documents(), encoded()
    router, question = banks.CONFIG.router, banks.questions((4, 3))
    there = {layer: states.map(lambda x: x.to(cuda)) for layer, states in pooled.items()}
    ours, plain = (view_of(documents, each, chunk_cu, router) for each in (there, pooled))
    for layer in pooled:
        routing, k, _ = ours.search(layer, *(x.to(cuda) for x in question))
        expected, plain_k, _ = plain.search(layer, *question)
        assert torch.equal(routing.documents.cpu(), expected.documents)
        assert k.is_cuda and torch.equal(k.cpu(), plain_k)


def test_a_document_that_is_added_is_all_that_is_uploaded(tmp_path, cuda):
    """Its keys in every layer, and once for all layers where each document's keys are."""
    bank = banks.write(tmp_path / "bank", [[1, 2, 3] * 20, [2] * 10])
    router, layer = banks.CONFIG.router, banks.CONFIG.router_layers[0]
    loader = BankLoader(TierSettings(prefetch=False), cuda)
    old = bank_view(bank, router, loader)
    for count in (2, 1):  # the first one makes the table grow
        banks.add(bank.path, [count])
        newer = BankSnapshot.open(bank.path, reuse=bank)
        with counting() as counts:
            view = bank_view(newer, router, loader)
        assert counts.copies == len(banks.CONFIG.router_layers) + 1, str(counts)
        bank = newer
    assert counts.launches < 10, str(counts)
    query, query_cu = banks.questions()
    plain = bank_view(bank, router)
    for opened, same in ((old, plain.restricted(torch.arange(72) < 70)), (view, plain)):
        found = opened.search(layer, query.to(cuda), query_cu.to(cuda))[0].documents
        assert torch.equal(found.cpu(), same.search(layer, query, query_cu)[0].documents)
