import threading
from itertools import islice
from shutil import copytree

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import GlobalOrder, ShardLoader, ShardReader

SAMPLES = 24


@pytest.fixture
def place(samples):
    """Sample -> its place in the corpus."""
    known = {sample.to_bytes(): i for i, sample in enumerate(samples)}
    return lambda sample: known[sample.to_bytes()]


def read(folder, count, transform, **settings):
    loader = ShardLoader(folder, transform=transform, **settings)
    try:
        return list(islice(loader, count)), loader.state_dict()
    finally:
        loader.close()


def test_stages_come_in_sequence_and_are_permuted_inside(shards, place):
    order, _ = read(shards, SAMPLES, place)
    assert sorted(order[:6]) == list(range(6)) and sorted(order[6:12]) == list(range(6, 12))
    assert sorted(order[12:]) == list(range(12, 24)) and order[12:] != sorted(order[12:])


def test_every_epoch_has_another_order_of_the_same_samples(shards, place):
    order, state = read(shards, 2 * SAMPLES, place)
    first, second = order[:SAMPLES], order[SAMPLES:]
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second
    assert state == {"consumed": 2 * SAMPLES}


def test_the_order_depends_on_the_seed_alone(shards, place):
    assert read(shards, 40, place, seed=3) == read(shards, 40, place, seed=3, prefetch=1)
    assert read(shards, 40, place, seed=3) != read(shards, 40, place, seed=4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_ranks_reads_the_same_global_order(shards, place, world_size):
    expected, _ = read(shards, 60, place)
    ranks = [
        read(shards, 60 // world_size, place, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = [
        sample for step in zip(*(order for order, _ in ranks), strict=True) for sample in step
    ]
    assert together == expected
    assert {state["consumed"] for _, state in ranks} == {60}


@pytest.mark.parametrize("before, after", [(1, 2), (2, 3), (3, 1)])
def test_a_run_resumes_mid_epoch_with_another_number_of_ranks(shards, place, before, after):
    expected, _ = read(shards, 30, place)
    _, state = read(shards, 6 // before, place, rank=before - 1, world_size=before)
    assert state == {"consumed": 6}
    orders = []
    for rank in range(after):
        loader = ShardLoader(shards, rank=rank, world_size=after, transform=place)
        loader.load_state_dict(state)
        orders.append(list(islice(loader, 24 // after)))
        loader.close()
    assert [s for step in zip(*orders, strict=True) for s in step] == expected[6:]


def test_what_was_prefetched_but_not_taken_is_not_consumed(shards, place):
    loader = ShardLoader(shards, transform=place, prefetch=8)
    first = [next(loader) for _ in range(3)]
    state = loader.state_dict()
    rest = [next(loader) for _ in range(5)]
    loader.load_state_dict(state)
    assert [next(loader) for _ in range(5)] == rest
    loader.load_state_dict({"consumed": 0})
    assert [next(loader) for _ in range(3)] == first
    loader.close()


def test_a_loader_leaves_no_thread_behind(shards, place):
    before = threading.active_count()
    read(shards, 3, place, prefetch=1)
    assert threading.active_count() == before


def test_without_a_transform_samples_come_as_they_are(shards):
    loader = ShardLoader(shards)
    assert len(loader) == SAMPLES
    assert len(next(loader).documents) in (8, 16)
    loader.close()


def test_large_orders_are_permutations():
    stages = np.repeat([0, 1, 2], [5, 0, 995])
    order = GlobalOrder(stages, seed=0)
    drawn = [order[place] for place in range(1000)]
    assert sorted(drawn) == list(range(1000)) and sorted(drawn[:5]) == list(range(5))
    assert order[1000] != drawn[0] or order[1001] != drawn[1]


def damaged(shards, tmp_path, change):
    copy = copytree(shards, tmp_path / "copy")
    change(copy / "shard-000001.tar")
    return copy


def errors_of(folder):
    """The message of every sample that cannot be read."""
    reader, found = ShardReader(folder), {}
    for i in range(SAMPLES):
        try:
            reader[i]
        except DataError as error:
            found[i] = str(error)
    return found


def flip(path):
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def test_damage_is_found_and_named(shards, tmp_path):
    found = errors_of(damaged(shards, tmp_path, flip))
    assert list(found) == [10]
    assert "sample 10 of" in found[10] and "shard-000001.tar is damaged" in found[10]


def test_a_truncated_shard_is_found_and_named(shards, tmp_path):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-15_000])

    found = errors_of(damaged(shards, tmp_path, cut))
    assert found and set(found) <= set(range(10, 20)) and 19 in found
    assert "shard-000001.tar is cut short" in found[19]


def test_a_missing_shard_is_found_and_named(shards, tmp_path):
    found = errors_of(damaged(shards, tmp_path, lambda path: path.unlink()))
    assert list(found) == list(range(10, 20))
    assert "shard-000001.tar cannot be read (No such file" in found[10]


def test_an_error_reaches_the_reader_and_stays(shards, tmp_path):
    folder = damaged(shards, tmp_path, lambda path: path.unlink())
    loader = ShardLoader(folder)
    for _ in range(2):
        with pytest.raises(DataError, match="shard-000001"):
            list(islice(loader, SAMPLES))
    loader.close()

    def fail(sample):
        raise ZeroDivisionError

    loader = ShardLoader(shards, transform=fail)
    with pytest.raises(ZeroDivisionError):
        next(loader)
    loader.close()


def test_impossible_settings_are_refused(shards, tmp_path):
    with pytest.raises(DataError, match="rank 2 of world_size 2"):
        ShardLoader(shards, rank=2, world_size=2)
    with pytest.raises(DataError, match="prefetch is 0"):
        ShardLoader(shards, prefetch=0)
    with pytest.raises(DataError, match="no shards in"):
        ShardLoader(tmp_path)
    for state in ({}, {"consumed": -1}, {"consumed": "3"}):
        with pytest.raises(DataError, match="the loader's state"):
            ShardLoader(shards).load_state_dict(state)
