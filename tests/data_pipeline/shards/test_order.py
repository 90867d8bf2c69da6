import numpy as np
import pytest

from data_pipeline.shards.order import BuiltReads, GlobalOrder, MixtureReads

A, B = np.arange(5, 65), np.arange(65, 105)  # what was built for stage 1, by source


def all_of(order):
    return [order[place] for place in range(len(order))]


def mixed(samples, weights, limit=None, seed=0):
    mixture = MixtureReads({"a": A, "b": B}, weights, samples)
    reads = [BuiltReads(0), BuiltReads(1, limit), mixture]
    return all_of(GlobalOrder(((5,), (100,)), (1, 1), seed, reads))


def test_large_orders_are_permutations():
    order = GlobalOrder(((5,), (995,)), (1, 2), seed=0)
    drawn = [order[place] for place in range(len(order))]
    assert len(drawn) == 1995 and sorted(drawn[:5]) == list(range(5))
    assert sorted(drawn[5:1000]) == sorted(drawn[1000:]) == list(range(5, 1000))
    assert drawn[5:1000] != drawn[1000:]
    with pytest.raises(IndexError):
        order[1995]


def test_a_part_that_came_later_is_read_after_those_before_it():
    whole, grown = (GlobalOrder(((5,), parts), (1, 2), seed=0) for parts in ((40,), (30, 10)))
    alone = GlobalOrder(((5,), (30,)), (1, 2), seed=0)
    order = [grown[place] for place in range(len(grown))]
    assert len(grown) == len(whole) and order != [whole[place] for place in range(len(whole))]
    assert order[:35] == [alone[place] for place in range(35)]
    assert sorted(order[35:45]) == list(range(35, 45)) and sorted(order[45:75]) == sorted(
        order[5:35]
    )


def test_a_mixture_follows_its_weights_and_reads_each_sample_before_one_twice():
    drawn = mixed(1000, {"a": 1, "b": 3})[105:]
    assert 690 < sum(i in B for i in drawn) < 810
    for pool in (A, B):
        own = [i for i in drawn if i in pool]
        counts = np.bincount(own, minlength=105)[pool]
        assert counts.max() - counts.min() <= 1 and sorted(own[: len(pool)]) == list(pool)
    assert mixed(1000, {"a": 1, "b": 0})[105:][:60] != list(A)
    assert not {*mixed(1000, {"a": 1, "b": 0})[105:]} & {*B.tolist()}


def test_a_mixture_depends_on_the_seed_and_begins_as_a_shorter_one():
    weights = {"a": 2, "b": 1}
    assert mixed(500, weights)[:205] == mixed(100, weights)
    assert mixed(100, weights)[105:] != mixed(100, weights, seed=1)[105:]


def test_what_a_stage_that_ended_early_did_not_read_comes_first():
    order = mixed(80, {"a": 6, "b": 4}, limit=30)
    read, drawn = order[5:35], order[35:]
    assert order[:35] == mixed(80, {"a": 6, "b": 4})[:35]
    for pool in (A.tolist(), B.tolist()):
        left = {*pool} - {*read}
        own = [i for i in drawn if i in pool]
        assert {*own[: len(left)]} == left or len(own) < len(left)
    assert len(drawn) == 80
