"""Keys of a bank's segments on a device: written once, grown without a second copy of all."""

import gc

import pytest
import torch

from msa_train.memory.search.key_table import KeyTable
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.settings import KEY_FORMS
from tests.memory.search.random_memory import HEADS, ROUTER, WIDTH, memory

LAYERS = {3: WIDTH, 5: 2 * WIDTH}


def table(form="stored", dtype=torch.float32):
    return KeyTable(LAYERS, dtype, HEADS, form, "cpu")


@pytest.mark.parametrize("form", KEY_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_segments_rows_are_its_keys_in_that_form(form, dtype):
    keys, cu = memory([3, 1, 2], 0)
    keys, held = keys.to(dtype), table(form, dtype)
    first, second = held.place([4, 6])
    second.write(3, keys)
    first.write(3, keys[:4])
    placed = second.placed(3).own(6)
    alone = LayerKeys(keys, cu, ROUTER, HEADS, form)._searched
    for ours, expected in zip(parts(placed), parts(alone), strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours.float(), expected.float())
    for ours, expected in zip(parts(first.placed(3).own(4)), parts(alone), strict=True):
        assert torch.equal(ours.float(), expected[:4].float())


def parts(keys):
    return [keys] if isinstance(keys, torch.Tensor) else vars(keys).values()


def test_the_first_segments_take_what_they_need_and_later_ones_find_room():
    held = table()
    first = held.place([700, 300])
    assert held.rows == 1000 and [rows.first for rows in first] == [0, 700]
    [added] = held.place([5])
    grown = held.rows
    assert added.first == 1000 and grown > 1005, "with room for the next ones"
    more = [held.place([5])[0] for _ in range(100)]
    assert held.rows == grown and more[-1].first == 1000 + 5 * 100


def test_growing_keeps_what_is_there_in_every_layer():
    held = table("int8")
    keys, _ = memory([3, 1, 2], 0)
    [rows] = held.place([6])
    for layer, width in LAYERS.items():
        rows.write(layer, keys.repeat(1, width // WIDTH))
    before = [part.clone() for layer in LAYERS for part in parts(rows.placed(layer).own(6))]
    held.place([100_000])
    after = [part for layer in LAYERS for part in parts(rows.placed(layer).own(6))]
    assert all(map(torch.equal, before, after))


def test_where_memory_runs_out_rows_stay_and_the_next_ones_fit(monkeypatch):
    held, (keys, _) = table(), memory([3, 1, 2], 0)
    [rows] = held.place([6])
    rows.write(3, keys)

    def empty(layer, count, made=held._empty):
        if layer == 5:
            raise torch.OutOfMemoryError
        return made(layer, count)

    with monkeypatch.context() as scarce, pytest.raises(torch.OutOfMemoryError):
        scarce.setattr(held, "_empty", empty)
        held.place([100])
    [more] = held.place([50])
    assert more.first == 6 and {len(held.keys(layer)) for layer in LAYERS} == {held.rows}
    assert torch.equal(rows.placed(3).own(6), keys)


def test_rows_that_nobody_holds_are_given_again():
    held = table()
    first, second, third = held.place([10, 20, 30])
    del second
    gc.collect()
    [small, other] = held.place([5, 15])
    assert (small.first, other.first) == (10, 15) and held.rows == 60
    del third, other, small
    gc.collect()
    [large] = held.place([50])
    assert large.first == 10 and held.rows == 60 and first.first == 0


def test_what_keys_are_searched_in_keeps_their_rows():
    held = table()
    [rows] = held.place([10])
    placed = rows.placed(3)
    del rows
    gc.collect()
    assert held.place([10])[0].first == 10
    del placed
    gc.collect()
    assert held.place([10])[0].first == 0
