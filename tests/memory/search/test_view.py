"""Views: restricted to some documents, of which they know and find no others."""

from itertools import pairwise

import pytest
import torch

from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.in_memory import view_of
from msa_train.memory.search.loader import bank_view
from tests.memory.building import encode_in_memory
from tests.memory.search.test_in_memory import encoded
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("places", [[1, 2, 3], [0, 4]])
def test_a_restricted_view_finds_and_knows_only_its_documents(places):
    documents, router = tiny_documents(), tiny_model().config.router
    whole = view_of(documents, *encoded(), router)
    allowed = torch.zeros(7, dtype=torch.bool)
    allowed[places] = True
    some, part = (
        whole.restricted(allowed),
        view_of(documents, *encoded(), router, torch.tensor(places)),
    )
    assert len(some) == len(places)
    assert [whole.numbers[p].item() for p in range(7) if some.knows(int(whole.numbers[p]))] == (
        whole.numbers[places].tolist()
    )
    config = tiny_model().config
    query = torch.randn(8, config.kv_heads * config.head_dim)
    for layer in config.router_layers:
        a, k, _ = some.search(layer, query, torch.tensor([0, 5, 8]))
        b, other_k, _ = part.search(layer, query, torch.tensor([0, 5, 8]))
        assert torch.equal(whole.numbers[a.documents], part.numbers[b.documents])
        assert torch.equal(k, other_k) and torch.equal(a.best_chunks(), b.best_chunks())


def test_restrictions_add_up_and_removed_documents_stay_away(changed):
    bank = BankSnapshot.open(changed)
    view = bank_view(bank, tiny_model().config.router)
    assert len(view) == len(bank) < len(bank.numbers)
    first, even = torch.zeros(len(bank.numbers), dtype=torch.bool), bank.numbers % 2 == 0
    first[:6] = True
    some = view.restricted(first).restricted(even)
    known = [number for number in range(-1, 20) if some.knows(number)]
    assert known == bank.numbers[first & even & bank.live].tolist()
    assert len(some) == len(known) > 1
    assert not len(some.restricted(~even))


@pytest.mark.parametrize("gate", ["none", "threshold"])
def test_what_a_search_returns_is_what_its_indices_say(gate):
    model = tiny_model(gate)
    view = encode_in_memory(model, tiny_tokenizer(), tiny_documents(), token_budget=50)
    gen = torch.Generator().manual_seed(1)
    width = model.config.kv_heads * model.config.head_dim
    query, query_cu = torch.randn(9, width, generator=gen), torch.tensor([0, 4, 9])
    layer = model.config.router_layers[0]
    routing, k, v = view.search(layer, query, query_cu)
    keys = view.searcher.parts[0].keys[layer].full
    cu = torch.nn.functional.pad(view.chunk_counts.cumsum(0), (1, 0))
    assert (routing.chunk_scores is None) == (gate == "none")
    for context in range(2):
        q = query[query_cu[context] : query_cu[context + 1]]
        chunks = (q @ keys.T).amax(0)
        best = torch.stack([chunks[a:b].max() for a, b in pairwise(cu)])
        top = best.topk(model.config.router.top_k)
        assert routing.documents[context].tolist() == top.indices.tolist()
        torch.testing.assert_close(routing.values[context], top.values)
        for document, chunk in zip(top.indices, routing.best_chunks()[context], strict=True):
            assert int(chunks[cu[document] : cu[document + 1]].argmax()) == int(chunk)
        index = routing.chunk_index[routing.index_cu[context] : routing.index_cu[context + 1]]
        rows = torch.cat([torch.arange(cu[d], cu[d + 1]) for d in top.indices.sort().values])
        expected = view.searcher.parts[0].read(layer, torch.arange(len(cu) - 1))
        assert torch.equal(k[index], expected.k[rows]) and torch.equal(v[index], expected.v[rows])
    places = routing.documents.cpu()
    torch.testing.assert_close(view.searcher.score(layer, query, query_cu, places), routing.values)
