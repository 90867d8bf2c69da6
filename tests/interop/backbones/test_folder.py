"""Hugging Face folders: what is read beside the weights, and indices that lie."""

import json
import shutil

import pytest
import torch

from data_pipeline.errors import DataError
from msa_train.errors import CheckpointError
from msa_train.interop.backbones.folder import HuggingFaceFolder
from tests.interop.backbones.models import random_model, save


@pytest.fixture
def folder(tmp_path):
    """Saved in several files."""
    return save(random_model("qwen2-yarn"), tmp_path / "small-qwen", max_shard_size="20KB")


def test_weights_come_file_by_file(folder):
    backbone = HuggingFaceFolder(folder)
    expected = random_model("qwen2-yarn").state_dict()
    found = dict(backbone.weights())
    assert list(found) == list(backbone.stored) and found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name])
        assert backbone.stored[name].shape == tuple(weight.shape)


def test_a_head_that_is_tied_is_left_out_where_it_was_saved_as_well(tmp_path):
    folder = save(random_model("qwen2-yarn"), tmp_path / "tied")
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(raw))
    backbone = HuggingFaceFolder(folder)
    assert "lm_head.weight" not in backbone.stored
    assert "lm_head.weight" not in dict(backbone.weights())


def test_name_licence_and_template_are_read(folder):
    plain = HuggingFaceFolder(folder)
    assert (plain.name, plain.licence, plain.chat_template) == ("small-qwen", None, None)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# A model\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    backbone = HuggingFaceFolder(folder)
    assert (backbone.licence, backbone.chat_template) == ("mit", "old")
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert HuggingFaceFolder(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("new")
    (folder / "README.md").write_text("---\n- no mapping\n---\n")
    backbone = HuggingFaceFolder(folder)
    assert (backbone.licence, backbone.chat_template) == (None, "new")


def test_an_index_that_lies_is_refused(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"]["model.norm.weight"] = first
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{first} has no weight model\.norm\.weight"):
        HuggingFaceFolder(folder)
    (folder / first).unlink()
    with pytest.raises(CheckpointError, match=f"{first} is missing, which"):
        HuggingFaceFolder(folder)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        HuggingFaceFolder(folder)


def test_a_weight_in_two_files_is_refused(tmp_path):
    """As `save_pretrained(variant=...)` leaves them."""
    folder = save(random_model("qwen2-yarn"), tmp_path / "twice")
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.fp16\.safetensors and .* both hold"):
        HuggingFaceFolder(folder)


def test_files_that_are_not_what_they_are_called_are_refused(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is a JSON list"):
        HuggingFaceFolder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        HuggingFaceFolder(folder)
