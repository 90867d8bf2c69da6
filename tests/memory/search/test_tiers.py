"""Tiers: the same answers wherever bytes lie, budgets that hold, snapshots that stay."""

import itertools
import shutil
import threading

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.bank.build import add_documents, build_bank
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.engine.interleave import Interleave
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.tiers import BankLoader, bank_view
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = ["What is the code of the harbour?", "Who sleeps standing?", "?"]


@pytest.fixture
def path(tmp_path):
    build_bank(
        tmp_path / "bank", tiny_model(), tiny_tokenizer(), tiny_documents(), FINGERPRINT, "float32"
    )
    return tmp_path / "bank"


def read(view):
    """Final states of some prompts, and what was selected."""
    prompts = [Interleave(question, view, "memory").context for question in QUESTIONS]
    prefill = prefill_pieces(tiny_model(), tiny_tokenizer(), view.memory, prompts)
    chosen = [reading.routing.documents for reading in prefill.selected.values()]
    return prefill.last, torch.cat(chosen, 1)


def more(count):
    texts = (f"Another document, number {i}, about cranes." for i in range(count))
    return [StoredDocument(i, text, f"more{i}") for i, text in enumerate(texts)]


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
    expected, documents = read(bank_view(bank, router))
    tiers = BankLoader(TierSettings(keys, states, hot_mb, prefetch), router)
    view = tiers.view(bank)
    for _ in range(2):
        ours, chosen = read(view)
        assert torch.equal(chosen, documents) and torch.equal(ours, expected)
    tiers.close()
    assert tiers.hot.bytes <= hot_mb * (1 << 20)


def test_winners_are_fetched_ahead_for_the_layers_above(path):
    router = tiny_model().config.router
    first, *above = tiny_model().config.router_layers
    tiers = BankLoader(TierSettings(), router)
    shard = tiers.shard(BankSnapshot.open(path))
    shard.states(first, torch.tensor([0, 3]))
    tiers.close()  # waits for what is under way
    assert tiers.hot.misses == 2
    for layer in above:
        shard.states(layer, torch.tensor([0, 3]))
    assert tiers.hot.misses == 2 and tiers.hot.hits == 2 * len(above)


def test_what_is_kept_of_documents_is_within_the_budget(path):
    """Also when one of several that were read together is used again and again."""
    router = tiny_model().config.router
    layer = tiny_model().config.router_layers[-1]
    bank = BankSnapshot.open(path)
    tiers = BankLoader(TierSettings(hot_mb=0.002, prefetch=False), router)
    shard = tiers.shard(bank)
    for other in (1, 2, 3, 4, 5, 6):
        shard.states(layer, torch.tensor([0, other]))
    held = [x for states in tiers.hot._held.values() for x in vars(states).values()]
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert 0 < sum(kept.values()) == tiers.hot.bytes <= 0.002 * (1 << 20)


def test_orders_to_fetch_ahead_do_not_pile_up(path, monkeypatch):
    begun, go = [], threading.Event()

    def slow(self, layers, rows):
        begun.append(rows)
        assert go.wait(30)

    monkeypatch.setattr("msa_train.memory.search.tiers._SegmentTier._fetch_ahead", slow)
    tiers = BankLoader(TierSettings(), tiny_model().config.router)
    shard = tiers.shard(BankSnapshot.open(path))
    for i in range(50):
        shard.states(tiny_model().config.router_layers[0], torch.tensor([i % 7]))
    go.set()
    tiers.ahead.shutdown(wait=True)
    assert len(begun) <= 2 and begun[-1] == [49 % 7], "one under way, and the newest"


def test_nothing_is_fetched_ahead_where_nothing_is_kept(path):
    assert BankLoader(TierSettings(hot_mb=0), tiny_model().config.router).ahead is None


def test_a_bank_built_again_in_its_place_is_a_new_one(path):
    served = LiveBank.open(path, tiny_model(), FINGERPRINT)
    assert len(served.view) == 7
    shutil.rmtree(path)
    build_bank(path, tiny_model(), tiny_tokenizer(), more(3), FINGERPRINT, "float32")
    assert len(served.view) == 3 and served.view.documents[1].id == "more1"
    served.close()


def test_a_damaged_key_is_never_searched(path):
    file = next(path.glob("segments/*/layer-*.key"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(BankError, match="was changed"):
        bank_view(BankSnapshot.open(path), tiny_model().config.router)


def test_a_served_bank_shows_commits_to_the_next_question_and_keeps_old_views(path):
    served = LiveBank.open(path, tiny_model(), FINGERPRINT)
    before = served.view
    states, documents = read(before)
    segment = served.bank.segments[0]
    added = add_documents(path, tiny_model(), tiny_tokenizer(), more(3), FINGERPRINT)
    assert added == 3 and len(served.view) == 10
    assert served.bank.segments[0] is segment, "what did not change is not opened again"
    with BankWriter(path, "remove") as writer:
        writer.remove([2])
        writer.compact()
    assert len(served.view) == 9 and not served.view.knows(2)
    again, same = read(before)
    assert torch.equal(again, states) and torch.equal(same, documents)
    assert before.knows(2) and before.documents[2].text.startswith("The code of the harbour")
    served.close()
