"""Hot documents: within the budget, and fetched ahead for the layers above."""

import threading

import torch

from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.cache import HotDocuments
from msa_train.memory.search.loader import BankLoader
from msa_train.memory.search.settings import TierSettings
from tests.memory.tiny import tiny_model


def test_winners_are_fetched_ahead_for_the_layers_above(path):
    first, *above = tiny_model().config.router_layers
    loader = BankLoader(TierSettings())
    searcher = loader.searcher(BankSnapshot.open(path), tiny_model().config.router)
    searcher.states(first, torch.tensor([0, 3]))
    loader.close()  # waits for what is under way
    assert loader.hot.misses == 2
    for layer in above:
        searcher.states(layer, torch.tensor([0, 3]))
    assert loader.hot.misses == 2 and loader.hot.hits == 2 * len(above)


def test_what_is_kept_of_documents_is_within_the_budget(path):
    """Also when one of several that were read together is used again and again."""
    layer = tiny_model().config.router_layers[-1]
    bank = BankSnapshot.open(path)
    loader = BankLoader(TierSettings(hot_mb=0.002, prefetch=False))
    searcher = loader.searcher(bank, tiny_model().config.router)
    for other in (1, 2, 3, 4, 5, 6):
        searcher.states(layer, torch.tensor([0, other]))
    held = [x for states in loader.hot._held.values() for x in vars(states).values()]
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert 0 < sum(kept.values()) == loader.hot.bytes <= 0.002 * (1 << 20)


def test_orders_to_fetch_ahead_do_not_pile_up(path, monkeypatch):
    begun, go = [], threading.Event()

    def slow(self, stored, layers, rows):
        begun.append(rows)
        assert go.wait(30)

    monkeypatch.setattr(HotDocuments, "_fetch", slow)
    loader = BankLoader(TierSettings())
    searcher = loader.searcher(BankSnapshot.open(path), tiny_model().config.router)
    for i in range(50):
        searcher.states(tiny_model().config.router_layers[0], torch.tensor([i % 7]))
    go.set()
    loader.hot.ahead.shutdown(wait=True)
    assert len(begun) <= 2 and begun[-1] == [49 % 7], "one under way, and the newest"


def test_nothing_is_fetched_ahead_where_nothing_is_kept():
    assert HotDocuments(0).ahead is None
    assert HotDocuments(1000, False).ahead is None
