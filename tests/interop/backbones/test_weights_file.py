"""Weights written one at a time are a safetensors file like any other."""

import pytest
import torch
from safetensors.torch import load_file

from msa_train.errors import CheckpointError
from msa_train.interop.backbones.weights_file import write_weights


def test_it_is_read_as_it_was_written(tmp_path):
    weights = {
        "a": torch.randn(3, 4), "b": torch.randn(6, 2).bfloat16(), "c": torch.randn(4).half(),
        "d": torch.randn(5, 7).T, "e": torch.zeros(0, 3),
    }  # fmt: skip
    planned = {name: (w.dtype, tuple(w.shape)) for name, w in weights.items()}
    path = tmp_path / "model.safetensors"
    assert write_weights(path, planned, weights.items()) == path.stat().st_size
    found = load_file(path)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight)


def test_a_weight_that_readers_could_not_map_is_refused(tmp_path):
    planned = {"a": (torch.float16, (3,)), "b": (torch.float32, (2,))}
    with pytest.raises(CheckpointError, match=r"b .* at the odd byte 6: give --dtype float32"):
        write_weights(tmp_path / "model.safetensors", planned, [])


@pytest.mark.parametrize("given", [[], ["a"], ["b", "a"], ["a", "b", "c"]])
def test_what_was_not_planned_is_not_written(tmp_path, given):
    planned = dict.fromkeys("ab", (torch.float32, (2,)))
    weights = [(name, torch.zeros(2)) for name in given]
    with pytest.raises((ValueError, AssertionError)):
        write_weights(tmp_path / "model.safetensors", planned, weights)
