import threading
from dataclasses import replace
from itertools import islice
from shutil import copytree

import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.loader import ShardLoader
from data_pipeline.shards.manifest import ShardManifest
from data_pipeline.shards.order import BuiltReads, MixtureReads
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.sampling import source_pools

SAMPLES = 24


@pytest.fixture
def place(samples):
    """Sample -> its place in the corpus."""
    known = {sample.to_bytes(): i for i, sample in enumerate(samples)}
    return lambda sample: known[sample.to_bytes()]


def loader_of(folder, **settings):
    return ShardLoader(ShardReader(folder), **settings)


@pytest.fixture
def twice(shards, tmp_path):
    """The same shards, every stage read twice."""
    copy = copytree(shards, tmp_path / "twice")
    manifest = ShardManifest.load(copy)
    stages = tuple(replace(stage, epochs=2) for stage in manifest.stages)
    replace(manifest, stages=stages).save(copy)
    return copy


def read(folder, count, transform, **settings):
    loader = loader_of(folder, transform=transform, **settings)
    try:
        return list(islice(loader, count)), loader.state_dict()
    finally:
        loader.close()


def test_stages_come_in_sequence_and_are_permuted_inside(shards, place):
    order, _ = read(shards, SAMPLES, place)
    assert sorted(order[:6]) == list(range(6)) and sorted(order[6:12]) == list(range(6, 12))
    assert sorted(order[12:]) == list(range(12, 24)) and order[12:] != sorted(order[12:])


def test_every_epoch_of_a_stage_has_another_order_of_its_samples(twice, place):
    order, state = read(twice, 2 * SAMPLES, place)
    first, second = order[:6], order[6:12]
    assert sorted(first) == sorted(second) == list(range(6))
    first, second = order[24:36], order[36:]
    assert sorted(first) == sorted(second) == list(range(12, 24)) and first != second
    assert state == {"consumed": 2 * SAMPLES, "parts": [[6], [6], [12]]}


def test_the_last_stage_ends(shards, place):
    loader = loader_of(shards, transform=place)
    assert len(loader) == SAMPLES == len(list(loader))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(loader)
    loader.close()


def test_the_order_depends_on_the_seed_alone(twice, place):
    assert read(twice, 40, place, seed=3) == read(twice, 40, place, seed=3, prefetch=1)
    assert read(twice, 40, place, seed=3) != read(twice, 40, place, seed=4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_any_number_of_ranks_reads_the_same_global_order(twice, place, world_size):
    expected, _ = read(twice, 48, place)
    ranks = [
        read(twice, 48 // world_size, place, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = [
        sample for step in zip(*(order for order, _ in ranks), strict=True) for sample in step
    ]
    assert together == expected
    assert {state["consumed"] for _, state in ranks} == {48}


@pytest.mark.parametrize("before, after", [(1, 2), (2, 3), (3, 1)])
def test_a_run_resumes_mid_epoch_with_another_number_of_ranks(twice, place, before, after):
    expected, _ = read(twice, 30, place)
    _, state = read(twice, 6 // before, place, rank=before - 1, world_size=before)
    assert state["consumed"] == 6
    orders = []
    for rank in range(after):
        loader = loader_of(twice, rank=rank, world_size=after, transform=place)
        loader.load_state_dict(state)
        orders.append(list(islice(loader, 24 // after)))
        loader.close()
    assert [s for step in zip(*orders, strict=True) for s in step] == expected[6:]


def test_what_was_prefetched_but_not_taken_is_not_consumed(shards, place):
    loader = loader_of(shards, transform=place, prefetch=8)
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
    loader = loader_of(shards)
    assert len(loader) == SAMPLES
    assert len(next(loader).documents) in (8, 16)
    loader.close()


def test_a_run_goes_on_where_its_stages_have_grown(shards, place):
    """Nothing is read twice and nothing is left out; what had not begun is as if always so."""
    expected, _ = read(shards, SAMPLES, place)
    had = {"consumed": 9, "parts": [[6], [4], [3]]}
    loader = loader_of(shards, transform=place)
    loader.load_state_dict(had)
    assert loader.state_dict() == {"consumed": 9, "parts": [[6], [4, 2], [12]]}
    rest = list(loader)
    loader.close()
    assert len(rest) == 15 and sorted(rest[1:3]) == [10, 11] and rest[3:] == expected[12:]
    for had in ({"consumed": 12}, {"consumed": 12, "parts": [[6], [6]]}):
        loader = loader_of(shards, transform=place)
        loader.load_state_dict(had)
        assert list(loader) == expected[12:]
        loader.close()
    with pytest.raises(DataError, match=r"stage 0 of .* has 6 samples, and had 7"):
        loader_of(shards).load_state_dict({"consumed": 12, "parts": [[7]]})


def test_a_mixture_is_drawn_from_shards_as_they_are(shards, corpus, samples, place):
    """By any number of ranks, and from any place in it again."""
    pools = source_pools(corpus, [6, 6, 12], [0, 2])
    reads = [BuiltReads(0), BuiltReads(1), BuiltReads(2, 4)]
    reads.append(MixtureReads(pools, {"niah": 1, "pydocs": 3}, 40))
    plain, _ = read(shards, SAMPLES, place)
    whole, state = read(shards, 56, place, reads=reads)
    assert whole[:16] == plain[:16] and not {*whole[16:]} & {*range(6, 12)}
    sources = [samples[i].source for i in whole[16:]]
    assert 22 < sources.count("pydocs") < 38
    assert state == {"consumed": 56, "parts": [[6], [6], [12]]}
    for world_size in (2, 4):
        ranks = (
            read(shards, 56 // world_size, place, reads=reads, rank=r, world_size=world_size)[0]
            for r in range(world_size)
        )
        assert [i for step in zip(*ranks, strict=True) for i in step] == whole
    for consumed in (14, 16, 30):
        loader = loader_of(shards, transform=place, reads=reads)
        loader.load_state_dict({"consumed": consumed, "parts": [[6], [6], [12]]})
        assert list(loader) == whole[consumed:]
        loader.close()


def test_an_error_reaches_the_reader_and_stays(shards, tmp_path):
    folder = copytree(shards, tmp_path / "copy")
    loader = loader_of(folder)
    (folder / "shard-000001.tar").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="shard-000001"):
            list(islice(loader, SAMPLES))
    loader.close()

    def fail(sample):
        raise ZeroDivisionError

    loader = loader_of(shards, transform=fail)
    with pytest.raises(ZeroDivisionError):
        next(loader)
    loader.close()


def test_impossible_settings_are_refused(shards, tmp_path):
    with pytest.raises(DataError, match="rank 2 of world_size 2"):
        loader_of(shards, rank=2, world_size=2)
    with pytest.raises(DataError, match="prefetch is 0"):
        loader_of(shards, prefetch=0)
    with pytest.raises(DataError, match="no shards in"):
        ShardReader(tmp_path)
    for state in ({}, {"consumed": -1}, {"consumed": "3"}):
        with pytest.raises(DataError, match="the loader's state"):
            loader_of(shards).load_state_dict(state)
