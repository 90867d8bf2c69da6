"""States that a device reads: in order, in one copy, within the budget, whoever reads beside."""

import random
import threading

import pytest
import torch

from msa_train.errors import BankError
from msa_train.memory.search.device_cache import DeviceDocuments
from msa_train.model.attention import Pooled

LAYERS = (2, 3, 5)
ROW = 4 * (2 * 3 * 2 + 6)  # bytes of a chunk: K and V of two heads of 3 values, a key of 6


class Stored:
    """Documents of 1 to 3 chunks, whose states say which they are. reads: (layer, row)."""

    def __init__(self, identity, documents, seed):
        gen = torch.Generator().manual_seed(seed)
        self.identity, self.layers, self.reads = identity, LAYERS, []
        self.cu = torch.tensor([0, *(1 + row % 3 for row in range(documents))]).cumsum(0)
        chunks = int(self.cu[-1])
        self.pooled = {
            layer: Pooled(
                torch.randn(chunks, 2, 3, generator=gen),
                torch.randn(chunks, 2, 3, generator=gen),
                torch.randn(chunks, 6, generator=gen),
            )
            for layer in LAYERS
        }

    def counts(self, rows):
        return self.cu[rows + 1] - self.cu[rows]

    def states(self, layer):
        return self.pooled[layer]

    def chunks(self, rows):
        return torch.cat([torch.arange(self.cu[row], self.cu[row + 1]) for row in rows])

    def read_into(self, layer, rows, out):
        self.reads += [(layer, row) for row in rows.tolist()]
        if self.identity == "damaged":
            raise BankError("was changed")
        for name in ("k", "v", "key"):
            getattr(out, name).copy_(getattr(self.pooled[layer], name)[self.chunks(rows)])


def right(hot, layer, wanted):
    found = hot.read(layer, wanted)
    for name in ("k", "v", "key"):
        expected = [getattr(s.pooled[layer], name)[s.chunks(rows)] for s, rows in wanted]
        assert torch.equal(getattr(found, name), torch.cat(expected))


def drawn(chance, stored, most):
    rows = [chance.sample(range(len(each.cu) - 1), chance.randint(1, most)) for each in stored]
    return [(each, torch.tensor(sorted(own))) for each, own in zip(stored, rows, strict=True)]


@pytest.mark.parametrize("rows", [0, 7, 40, 1000])
@pytest.mark.parametrize("ahead", [False, True])
def test_states_come_in_order_whatever_is_kept(rows, ahead):
    """rows: of a layer that are kept."""
    stored, chance = [Stored("a", 9, 0), Stored("b", 12, 1)], random.Random(rows)
    hot = DeviceDocuments(rows * ROW, "cpu", ahead)
    for _ in range(40):
        wanted = drawn(chance, chance.choice([stored, stored[:1], stored[1:]]), 4)
        for layer in LAYERS:
            right(hot, layer, wanted)
    hot.close()
    for table in hot._tables.values():
        held = [row for own in table.held.values() for row in own]
        assert sorted([*held, *table.free]) == list(range(rows)) and not hot._used


def test_what_was_read_is_not_read_again():
    stored, hot = Stored("a", 9, 0), DeviceDocuments(100 * ROW, "cpu", False)
    right(hot, 2, [(stored, torch.tensor([1, 4]))])
    right(hot, 2, [(stored, torch.tensor([1, 3, 4]))])
    assert stored.reads == [(2, 1), (2, 4), (2, 3)]
    assert (hot.hits, hot.misses) == (2, 3)


def test_the_longest_unused_go_first():
    stored, hot = Stored("a", 12, 0), DeviceDocuments(3 * ROW, "cpu", False)
    for row in (0, 3, 6, 0, 9):  # of one chunk each; 3 is the longest unused when 9 comes
        right(hot, 2, [(stored, torch.tensor([row]))])
    right(hot, 2, [(stored, torch.tensor([0, 6, 9]))])
    assert [row for _, row in stored.reads] == [0, 3, 6, 9]


def test_what_has_no_room_beside_what_is_read_drops_nothing():
    stored, hot = Stored("a", 12, 0), DeviceDocuments(3 * ROW, "cpu", False)
    right(hot, 2, [(stored, torch.tensor([0]))])
    right(hot, 2, [(stored, torch.tensor([1, 2]))])  # 5 chunks
    right(hot, 2, [(stored, torch.tensor([0]))])
    assert [row for _, row in stored.reads] == [0, 1, 2]


def test_winners_are_fetched_ahead_for_the_layers_above():
    stored, hot = Stored("a", 9, 0), DeviceDocuments(100 * ROW, "cpu")
    wanted = [(stored, torch.tensor([0, 5]))]
    right(hot, 2, wanted)
    hot.close()  # waits for what is under way
    reads = list(stored.reads)
    assert {layer for layer, _ in reads} == set(LAYERS)
    for layer in LAYERS[1:]:
        right(hot, layer, wanted)
    assert stored.reads == reads and hot.misses == 2 and hot.hits == 4


def test_damage_leaves_every_row_free_that_was_taken():
    damaged, whole = Stored("damaged", 6, 0), Stored("a", 6, 1)
    hot = DeviceDocuments(20 * ROW, "cpu", False)
    with pytest.raises(BankError, match="was changed"):
        hot.read(2, [(whole, torch.tensor([1])), (damaged, torch.tensor([2]))])
    [table] = hot._tables.values()
    assert sorted(table.free) == list(range(20)) and not table.held and not hot._used
    right(hot, 2, [(whole, torch.tensor([1, 2]))])


def test_threads_do_not_disturb_one_another():
    stored = [Stored("a", 9, 0), Stored("b", 12, 1)]
    hot, failures = DeviceDocuments(25 * ROW, "cpu"), []

    def work(seed):
        chance = random.Random(seed)
        try:
            for _ in range(30):
                right(hot, chance.choice(LAYERS), drawn(chance, stored, 3))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hot.close()
    assert not failures
