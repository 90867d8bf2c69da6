"""Views of encoded documents: a part of them is a memory of those documents."""

import pytest
import torch

from data_pipeline.protocol import prompt_pieces
from msa_train.errors import BankError
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.in_memory import joined, view_of
from tests.batches import OWN_ROUTER
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer


def encoded():
    batches = encode_documents(tiny_model(), tiny_tokenizer(), tiny_documents(), 50)
    return joined(list(batches))


@pytest.mark.parametrize("places", [[0], [1, 2, 3], [0, 3, 6], [5, 6], list(range(7))])
def test_a_part_is_a_memory_of_those_documents(places):
    documents, router = tiny_documents(), tiny_model().config.router
    ours = view_of(documents, *encoded(), router, torch.tensor(places))
    part = [documents[place] for place in places]
    theirs = encode_in_memory(tiny_model(), tiny_tokenizer(), part, token_budget=50)
    assert len(ours) == len(places)
    assert ours.numbers.tolist() == [document.number for document in part]
    config = tiny_model().config
    query = torch.randn(12, config.kv_heads * config.head_dim)
    for layer in config.router_layers:
        a, k, v = ours.search(layer, query, torch.arange(0, 13, 4))
        b, other_k, other_v = theirs.search(layer, query, torch.arange(0, 13, 4))
        assert torch.equal(a.documents, b.documents)
        torch.testing.assert_close(a.values, b.values)
        torch.testing.assert_close(k, other_k)
        torch.testing.assert_close(v, other_v)


def test_consecutive_parts_copy_nothing():
    pooled, chunk_cu = encoded()
    view = view_of(
        tiny_documents(), pooled, chunk_cu, tiny_model().config.router, torch.tensor([1, 2, 3])
    )
    (part,) = view.searcher.parts
    for layer, keys in part.keys.items():
        ours, theirs = keys.full.untyped_storage(), pooled[layer].key.untyped_storage()
        assert ours.data_ptr() == theirs.data_ptr()


def test_no_documents_no_memory():
    with pytest.raises(BankError, match="at least one document"):
        joined([])


def test_an_empty_memory_of_a_model_whose_first_router_layer_votes_is_read():
    model = tiny_model("none", **OWN_ROUTER)  # layer 0 votes, layer 2 reads
    whole = list(encode_documents(model, tiny_tokenizer(), tiny_documents()))
    pooled, cu = joined(whole)
    nothing = view_of(tiny_documents(), pooled, cu, model.config.router, torch.tensor([]).long())
    found = prefill_pieces(model, tiny_tokenizer(), nothing, [prompt_pieces("Where?")])
    assert found.selected[2].k.shape[1:] == (model.config.kv_heads, model.config.head_dim)
