"""Weights of a rank, against those of the training module."""

import pytest

from msa_train.model.config import PRESETS
from msa_train.training.planner.weights import parts, weights
from tests.batches import OWN_ROUTER, VOTING_ROUTER, random_batch, tiny_config

CONFIGS = {
    "gated": tiny_config("threshold"),
    "own router": tiny_config("threshold", **OWN_ROUTER),
    "voting": tiny_config("none", **VOTING_ROUTER),
    "coupled": tiny_config("none", decouple=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_counted_and_what_encoding_reaches(megatron, name):
    config = CONFIGS[name]
    module, found = megatron(config), weights(config)
    assert sorted(each.numel for each in found) == sorted(p.numel() for p in module.parameters())
    batch = random_batch([[9, 5]], [(0, 4)], config)
    from msa_train.model.batch import PackedDocuments

    states = module(PackedDocuments(batch.doc_tokens, batch.doc_cu))
    sum(state.sum() for state in states if state.requires_grad).backward()
    reached = [p.numel() for p in module.parameters() if p.grad is not None]
    assert sum(each.numel for each in found if each.encodes) == sum(reached)


def test_parts_of_the_published_model():
    whole = parts(weights(PRESETS["4b"]))
    assert sum(whole.values()) == 4_258_397_732
    assert whole["router"] == 18 * (2560 * (4096 + 1024) + 2)
    assert whole["attention"] == 36 * 2560 * (2 * 4096 + 2 * 1024)
    assert whole["feed-forward"] == 36 * 3 * 2560 * 9728 and whole["embedding"] == 151_936 * 2560
    assert set(whole) == {"router", "attention", "feed-forward", "embedding", "norms"}


def test_a_tensor_parallel_rank_has_its_part():
    one, four = weights(PRESETS["4b"]), weights(PRESETS["4b"], 4)
    for a, b in zip(one, four, strict=True):
        assert b.numel == (a.numel if a.part == "norms" or a.numel == 1 else a.numel // 4)


def test_only_what_a_stage_trains_learns():
    found = weights(PRESETS["4b"], 1, frozenset({"router"}))
    assert {each.part for each in found if each.learns} == {"router"}
    assert all(each.learns for each in weights(PRESETS["4b"], 1, frozenset({"router", "all"})))
    assert {each.group for each in found} == {
        ("router", True), ("router", False), ("backbone", True), ("backbone", False),
    }  # fmt: skip
