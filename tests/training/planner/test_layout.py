"""Layouts of ranks, and why some cannot train a run."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from msa_train.config import load_config
from msa_train.errors import ConfigError
from msa_train.hardware import parse_cluster
from msa_train.training.planner.layout import Layout, layouts, offload_of, refusal, samples_of

CONFIG = load_config(["--config", "configs/train/msa-4b.yaml"])
HOST = {"device": "cpu"}


def _with(**settings):
    return replace(CONFIG, training=replace(CONFIG.training, **settings))


def test_settings_and_ranks_make_a_layout():
    found = Layout.of(_with(document_parallel=4), 16)
    assert (found.tensor, found.documents, found.replicas) == (1, 4, 4)
    assert (found.ranks, found.data, found.zero, found.recompute) == (16, 16, 3, "layer")
    assert samples_of(CONFIG, found) == 8
    assert found.words() == "TP 1, documents 4, ZeRO-3, recompute layer, no cache"
    split = _with(tensor_parallel=4, sequence_parallel=True)
    assert Layout.of(split, 8).data == 2 and "TP 4 + SP" in Layout.of(split, 8).words()
    with pytest.raises(ConfigError, match=r"8 ranks, which .* start a multiple of 12"):
        Layout.of(_with(tensor_parallel=4, document_parallel=3), 8)


def test_reasons_are_those_of_the_settings():
    assert refusal(CONFIG, Layout(tensor=8, replicas=8)) is None
    said = refusal(CONFIG, Layout(tensor=16, replicas=4))
    assert said == "model.kv_heads is 8, not divisible by training.tensor_parallel (16)"
    said = refusal(CONFIG, Layout(replicas=64))
    assert said == (
        "training.batch_samples is 32, which 64 data-parallel ranks cannot share: give a multiple"
    )
    away = {"zero_optimization": dict.fromkeys(("offload_param", "offload_optimizer"), HOST)}
    config, layout = _with(deepspeed=away), Layout(replicas=32, offload="parameters")
    assert "offload_param is given, but training.zero_stage is 2" in refusal(
        config, replace(layout, zero=2)
    )
    assert refusal(config, replace(layout, zero=3)) is None


def test_all_layouts_of_the_cards_are_tried():
    found = list(layouts(CONFIG, parse_cluster("16xH100-80GB"), 65_536))
    assert all(each.ranks == 16 for each in found) and len(set(found)) == len(found)
    assert {each.tensor for each in found} == {1, 2, 4, 8}
    assert {each.documents for each in found if each.tensor == 1} == {1, 2, 4, 8, 16}
    assert {each.zero for each in found} == {1, 2, 3}  # DeepSpeed's stage 0 is of fp32
    assert {each.sequence for each in found if each.tensor == 2} == {False, True}
    assert not any(each.sequence for each in found if each.tensor == 1)
    assert {each.recompute for each in found} == {"none", "attention", "layer"}
    assert {each.cache for each in found if each.documents == 1} == {None, 4096, 16_384}
    assert {each.cache for each in found if each.documents == 4} == {None, 4096}  # of its 16,384
    wide = layouts(CONFIG, parse_cluster("6xH100-80GB"), 65_536)
    assert {each.tensor for each in wide} == {1, 2, 6}


def test_what_is_sent_to_host_memory_is_said_by_deepspeeds_section():
    def given(**zero):
        return SimpleNamespace(training=SimpleNamespace(deepspeed={"zero_optimization": zero}))

    assert offload_of(CONFIG) == "none" == offload_of(given())
    assert offload_of(given(offload_optimizer=HOST)) == "optimizer"
    assert offload_of(given(offload_optimizer=HOST, offload_param=HOST)) == "parameters"
    assert offload_of(given(offload_optimizer={"device": "none"})) == "none"
