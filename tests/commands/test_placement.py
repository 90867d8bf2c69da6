"""--device and --compute: what is there, and what is meant where they are left out."""

import argparse

import pytest
import torch

from msa_train.commands.placement import add_device, add_placement, device_of, placement
from msa_train.errors import ConfigError
from msa_train.interop.export import Placement


@pytest.fixture(params=[0, 2])
def gpus(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def given(*words):
    add_placement(parser := argparse.ArgumentParser())
    return placement(parser.parse_args(words))


def test_a_gpu_is_used_where_there_is_one(gpus):
    usual = Placement("cuda:0", "bfloat16") if gpus else Placement("cpu", "float32")
    assert given() == usual
    assert given("--device", "cpu") == Placement("cpu", "float32")
    assert given("--device", "cpu", "--compute", "bfloat16") == Placement("cpu", "bfloat16")
    if gpus:
        assert given("--device", "cuda:1") == Placement("cuda:1", "bfloat16")
        assert given("--device", "cuda") == given("--device", "cuda:0") == usual
        assert given("--compute", "float32") == Placement("cuda:0", "float32")


def test_a_command_may_have_the_device_alone(gpus):
    add_device(parser := argparse.ArgumentParser())
    assert device_of(parser.parse_args([])) == ("cuda:0" if gpus else "cpu")
    assert device_of(parser.parse_args(["--device", "cpu"])) == "cpu"
    with pytest.raises(ConfigError, match="--device cuda:2: "):
        device_of(parser.parse_args(["--device", "cuda:2"]))


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "gpu", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused(gpus, device):
    if device == "":  # as if it were left out
        assert given("--device", device) == given()
        return
    with pytest.raises(ConfigError, match=f"--device {device}: "):
        given("--device", device)
