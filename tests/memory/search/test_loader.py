"""Opened banks: the same answers wherever bytes lie, and over however many segments."""

import itertools

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.loader import BankLoader, Share, bank_view
from msa_train.memory.search.settings import TierSettings
from tests.faults.bank_changes import CHANGES
from tests.memory.building import answered, encode_in_memory, search
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("keys", "states", "hot_mb", "prefetch"),
    [
        *itertools.product(["float32", "bfloat16", "int8", "fp8"], ["mapped"], [1.0], [True]),
        ("stored", "host", 0.0, False),
        ("stored", "mapped", 0.001, True),
        ("int8", "host", 0.0, True),
    ],
)
def test_answers_do_not_depend_on_tiers(path, keys, states, hot_mb, prefetch):
    bank, router = BankSnapshot.open(path), tiny_model().config.router
    expected, documents = answered(bank_view(bank, router))
    loader = BankLoader(TierSettings(keys, states, hot_mb, prefetch))
    view = bank_view(bank, router, loader)
    for _ in range(2):
        ours, chosen = answered(view)
        assert torch.equal(chosen, documents) and torch.equal(ours, expected)
    loader.close()
    assert loader.hot.bytes <= hot_mb * (1 << 20)


def test_search_in_a_bank_equals_search_in_memory(path):
    ours = bank_view(BankSnapshot.open(path), tiny_model().config.router)
    theirs = encode_in_memory(tiny_model(), tiny_tokenizer(), tiny_documents(), token_budget=50)
    for layer in tiny_model().config.router_layers:
        (a, k, v), (b, other_k, other_v) = search(ours, layer), search(theirs, layer)
        assert torch.equal(a.documents, b.documents)
        assert torch.equal(a.chunk_scores, b.chunk_scores)
        assert torch.equal(k, other_k) and torch.equal(v, other_v)


@pytest.mark.parametrize("changes", [(), ("add",), ("update", "add"), ("remove", "compact")])
def test_search_over_segments_equals_search_over_the_same_documents(changed, changes):
    for name in changes:
        CHANGES[name].run(changed)
    opened = BankSnapshot.open(changed, FINGERPRINT)
    view = bank_view(opened, tiny_model().config.router)
    same = encode_in_memory(tiny_model(), tiny_tokenizer(), list(opened), token_budget=60)
    ours, k, v = search(view)
    theirs, other_k, other_v = search(same)
    live = torch.cat([opened.numbers, torch.tensor([-1])])[ours.documents]
    assert torch.equal(live, torch.cat([same.numbers, torch.tensor([-1])])[theirs.documents])
    torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(ours.chunk_scores, theirs.chunk_scores)
    torch.testing.assert_close(k[ours.chunk_index], other_k[theirs.chunk_index])
    torch.testing.assert_close(v[ours.chunk_index], other_v[theirs.chunk_index])
    assert len(view) == len(same)


def test_a_damaged_key_is_never_searched(path):
    file = next(path.glob("segments/*/layer-*.key"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(BankError, match="was changed"):
        bank_view(BankSnapshot.open(path), tiny_model().config.router)


def test_a_rank_without_a_share_holds_nothing_of_a_segment_however_long():
    cu = torch.tensor([0, 1 << 24, (1 << 24) + 1])  # not a float32
    assert [Share(rank, (1, 0)).rows(cu) for rank in range(2)] == [(0, 2), (2, 2)]


def test_segments_are_loaded_once_and_let_go(changed):
    loader, router = BankLoader(TierSettings()), tiny_model().config.router
    old = BankSnapshot.open(changed)
    searcher = loader.searcher(old, router)
    assert searcher.parts
    loaded = dict(loader._loaded)
    CHANGES["add"].run(changed)
    new = BankSnapshot.open(changed, reuse=old)
    newer = loader.searcher(new, router)
    assert len(newer.parts) > len(searcher.parts)
    assert dict(loader._loaded).items() > loaded.items()
    del newer
    assert dict(loader._loaded) == loaded
