"""Exports opened and written again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from msa_train.errors import CheckpointError
from msa_train.interop.export import load_export
from msa_train.interop.huggingface.origin import Origin
from tests.interop.huggingface.folders import imported


@pytest.fixture
def given(tmp_path):
    folder = shutil.copytree(imported("qwen2")[1], tmp_path / "start")
    return Origin.of(folder), load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_weights_are_the_same_folder(given, tmp_path, dtype):
    """Also where they are computed in another dtype."""
    origin, weights = given
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    (tmp_path / "again").mkdir()  # an empty folder may be there
    origin.save(tmp_path / "again", weights, "{}")
    for path in origin.folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "again" / "generation_config.json").read_text() == "{}"


def test_other_weights_are_another_export(given, tmp_path):
    origin, weights = given
    weights = {name: (weight + 1).bfloat16() for name, weight in weights.items()}
    origin.save(tmp_path / "other", weights, "{}")
    written = load_file(tmp_path / "other" / "model.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in weights.items())
    fingerprint = load_export(tmp_path / "other").fingerprint
    changed = {name for name in fingerprint if fingerprint[name] != origin.fingerprint[name]}
    assert changed == {"weights"}


def test_what_is_no_export_is_not_written(given, tmp_path):
    origin, weights = given
    name = "model.norm.weight"
    left = {key: weight for key, weight in weights.items() if key != name}
    for wrong in (left, weights | {name: weights[name][:1]}, weights | {"z": weights[name]}):
        with pytest.raises(CheckpointError, match=r"is missing, unknown or of another shape \(1 "):
            origin.save(tmp_path / "other", wrong, "{}")
    with pytest.raises(CheckpointError, match=r"weights are in torch\.float64"):
        origin.save(tmp_path / "other", weights | {name: weights[name].double()}, "{}")
    (origin.folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another export by now, its config changed"):
        origin.save(tmp_path / "other", weights, "{}")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a").write_text("")
    with pytest.raises(CheckpointError, match="exists: remove it"):
        origin.save(tmp_path / "held", weights, "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"start", "held"}


@pytest.mark.parametrize(
    ("eos", "expected"),
    [
        ("<|im_end|>", ["<|im_end|>"]),
        ({"content": "<|endoftext|>"}, ["<|endoftext|>", "<|im_end|>"]),
        (None, ["<|im_end|>"]),
    ],
    ids=str,
)
def test_a_backbones_own_end_token_ends_too(given, eos, expected):
    origin, _ = given
    (origin.folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    assert sorted(origin.tokenizer.decode([i]) for i in origin.end_tokens) == expected


def test_a_tokenizer_saved_over_an_export_is_explained(given):
    origin, _ = given
    AutoTokenizer.from_pretrained(origin.folder).save_pretrained(origin.folder)
    with pytest.raises(
        CheckpointError, match=r"tokenizer changed.*the model's writes the tokenizer"
    ):
        Origin.of(origin.folder)
