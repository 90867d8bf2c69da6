"""Several ranks find, score and read what one process does, bit for bit."""

import gc
import threading
from pathlib import Path

import pytest
import torch

from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.events import selections
from msa_train.memory.engine.hybrid import with_words
from msa_train.memory.ranks import Ranks
from msa_train.memory.search.hybrid import WordIndexes
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.view import MemoryView
from tests.batches import OWN_ROUTER
from tests.memory.ranks.banks import CONFIG, add, compact, questions, write
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

ROUTER, LAYER = CONFIG.router, CONFIG.router_layers[-1]
SHAPES = {
    "several segments": {"segments": [[3, 1, 2, 5, 1, 1, 4, 2], [1, 2], [2, 2, 9, 1, 1]]},
    "removed": {"segments": [[1, 2, 3, 4, 5, 6], [2] * 9], "removed": [0, 5, 6, 7, 14]},
    "ties": {"segments": [[2, 1, 3, 1], [1] * 8], "removed": [2], "twin": 5},
    "some ties": {"segments": [[1] * 12, [2] * 5]},
    "fewer than top_k": {"segments": [[1], [4]]},
    "all removed": {"segments": [[1, 2]], "removed": [0, 1]},
    "one large document": {"segments": [[60]]},
    "empty": {"segments": []},
}
GROUPS = {
    "1 rank": (1, None, TierSettings()),
    "2 ranks": (2, None, TierSettings()),
    "4 ranks": (4, (3, 0, 1, 2), TierSettings(keys="int8", states="host", hot_mb=0.01)),
}


@pytest.fixture(scope="module", params=GROUPS)
def ranks(request):
    count, shares, tiers = GROUPS[request.param]
    ranks = Ranks(count, shares, tiers, timeout_s=60).start()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """All open at once in every group."""
    folder = tmp_path_factory.mktemp("banks")
    return {name: write(folder / name, **shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def searchers(ranks, banks):
    return {name: ranks.searcher(bank, ROUTER) for name, bank in banks.items()}


def alone(bank):
    return BankLoader(TierSettings()).searcher(bank, ROUTER)


def same(ours, theirs):
    """Found; a column in which no context has a document says nothing."""
    width = int((theirs.places >= 0).any(0).sum())
    assert torch.equal(ours.places, theirs.places[:, :width])
    assert torch.equal(ours.scores, theirs.scores[:, :width])
    return ours


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_search_scores_and_states_equal_one_process(banks, searchers, name, dtype):
    bank, ours, theirs = banks[name], searchers[name], alone(banks[name])
    query, query_cu = questions()
    query = query.to(dtype)
    generator = torch.Generator().manual_seed(1)
    for layer in CONFIG.router_layers:
        for k in (1, 3, 40):
            found = same(
                ours.best(layer, query, query_cu, k), theirs.best(layer, query, query_cu, k)
            )
            again = ours.score(layer, query, query_cu, found.places)
            assert torch.equal(again, found.scores)
        allowed = torch.rand(len(bank.numbers), generator=generator) < 0.4
        same(
            ours.best(layer, query, query_cu, 3, allowed),
            theirs.best(layer, query, query_cu, 3, allowed),
        )
        for places in (bank.live.nonzero().squeeze(1), found.places[found.places >= 0].unique()):
            if len(places):
                read, expected = ours.states(layer, places), theirs.states(layer, places)
                for field in ("k", "v", "key"):
                    assert torch.equal(getattr(read, field), getattr(expected, field))
    if name in ("all removed", "empty"):
        assert found.places.shape == (4, 0)
    else:
        assert (found.places[1] == -1).all()  # the context without a question


def test_every_rank_holds_its_share(ranks, banks, searchers):
    held = searchers["several segments"].own._places
    assert len(held) < len(banks["several segments"].numbers) or ranks.count == 1
    assert searchers["empty"].workers == []


@pytest.mark.parametrize("router", [{}, OWN_ROUTER], ids=["", "own"])
def test_a_forward_gives_the_same_logits(ranks, tmp_path, router):
    path, model = tmp_path / "bank", tiny_model(**router)
    build_bank(path, model, tiny_tokenizer(), tiny_documents(), FINGERPRINT, token_budget=50)
    bank = BankSnapshot.open(path, FINGERPRINT)
    settings = model.config.router
    searcher = ranks.searcher(bank, settings)
    words = WordIndexes().of(bank)
    one = bank_view(bank, settings, words=words)
    views = one, MemoryView.of(bank, searcher, settings, words)
    tokens = torch.arange(5, 29)
    is_query = torch.zeros(24, dtype=torch.bool)
    is_query[[3, 4, 5, 15, 16]] = True
    outputs, chosen = [], []
    for view in views:
        with torch.inference_mode():
            prefill = model.prefill(
                tokens, torch.tensor([0, 10, 24]), torch.cat([torch.arange(10), torch.arange(14)]),
                is_query, torch.tensor([2, 2]), view,
            )  # fmt: skip
            outputs.append((model.logits(prefill.hidden), prefill.selected))
        chosen.append(
            with_words(
                selections(prefill.selected, view),
                prefill.selected,
                view,
                ["Who said the code of the lighthouse?", None],
            )
        )
    (ours, our_reading), (theirs, their_reading) = outputs
    assert torch.equal(ours, theirs)
    assert chosen[0] == chosen[1] and len(chosen[0][0].fused) > 3 and chosen[0][1].fused is None
    for layer, reading in our_reading.items():
        other = their_reading[layer]
        assert torch.equal(reading.routing.documents, other.routing.documents)
        assert torch.equal(reading.routing.values, other.routing.values)
        assert torch.equal(reading.k, other.k)
        if reading.read:
            assert torch.equal(reading.bias, other.bias)


def test_old_snapshots_live_on_while_the_bank_changes(ranks, tmp_path):
    path = tmp_path / "bank"
    old = write(path, [[1, 2, 3], [2, 2, 2, 2]], removed=[1])
    query, query_cu = questions()
    first = ranks.searcher(old, ROUTER)
    before = first.best(LAYER, query, query_cu, 5)
    add(path, [3, 1, 1, 8])
    second = ranks.searcher(BankSnapshot.open(path, reuse=old), ROUTER)
    grown = same(second.best(LAYER, query, query_cu, 5), alone(second.bank).best(
        LAYER, query, query_cu, 5))  # fmt: skip
    assert not torch.equal(grown.scores, before.scores)
    third = ranks.searcher(compact(path), ROUTER)
    assert torch.equal(third.best(LAYER, query, query_cu, 5).scores, grown.scores)
    same(first.best(LAYER, query, query_cu, 5), before)
    places = old.live.nonzero().squeeze(1)
    assert torch.equal(first.states(LAYER, places).v, alone(old).states(LAYER, places).v)


def test_snapshots_nobody_has_are_let_go(ranks, tmp_path):
    def mapped(name):
        workers = ranks._group[0].workers.values()
        return [name in Path(f"/proc/{worker.pid}/maps").read_text() for worker in workers]

    path = tmp_path / "bank"
    old = ranks.searcher(write(path, [[2] * 20, [2] * 20], removed=[4]), ROUTER)
    name = f"{path}/segments/{old.bank.segments[0].entry.name}/"
    new = ranks.searcher(compact(path), ROUTER)
    assert mapped(name) == [rank in old.workers for rank in range(1, ranks.count)]
    del old
    gc.collect()
    query, query_cu = questions()
    found = new.best(LAYER, query, query_cu, 3)
    assert not any(mapped(name))
    same(found, alone(new.bank).best(LAYER, query, query_cu, 3))


def test_threads_share_the_ranks(searchers, banks):
    names = ["several segments", "removed", "ties", "some ties"]
    query, query_cu = questions()
    expected = {name: alone(banks[name]).best(LAYER, query, query_cu, 3) for name in names}
    wrong = []

    def ask(name):
        for _ in range(10):
            found = searchers[name].best(LAYER, query, query_cu, 3)
            if not torch.equal(found.scores, expected[name].scores):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_what_a_living_snapshot_shares_is_not_read_again(tmp_path):
    ranks = Ranks(1).start()
    old = write(tmp_path / "bank", [[1, 2], [2, 2]])
    names = [segment.entry.name for segment in old.segments]
    assert ranks._unread(old) == names
    searcher = ranks.searcher(old, ROUTER)
    assert ranks._unread(old) == []
    add(old.path, [1])
    new = BankSnapshot.open(old.path, reuse=old)
    assert ranks._unread(new) == [new.segments[2].entry.name]
    ranks._epoch += 1  # its workers were started again, and have read nothing
    assert ranks._unread(old) == names
    ranks._epoch -= 1
    del searcher
    gc.collect()
    assert ranks._unread(old) == names
    ranks.close()
