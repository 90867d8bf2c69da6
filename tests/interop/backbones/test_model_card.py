"""The card of a start folder: front matter that the Hub reads, and what was done."""

import re

import pytest
import torch
import yaml

from msa_train.config import load_config_file
from msa_train.interop.backbones.backbone import StoredWeight
from msa_train.interop.backbones.model_card import model_card
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.rope import RopeScaling
from tests.interop.backbones.test_backbone import Held


def test_the_card_says_what_was_done():
    backbone = Held()
    backbone.licence, backbone.chat_template = "apache-2.0", "{{ messages }}"
    backbone.stored = {"a": StoredWeight((2,), torch.float32, "Q4_1")}
    config = ModelConfig(architecture="llama", rope_scaling=RopeScaling("yarn", 4.0, 32768))
    card = model_card(backbone, config, {"<|x|>": "spelled in 9 ordinary tokens"})
    _, matter, body = card.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "base_model": "held", "library_name": "msa-train", "license": "apache-2.0",
    }  # fmt: skip
    for words in (
        "*held* (licence: apache-2.0)", "layers 2, 3", "Q4_1 (1)", "the numbers they stand for",
        "'rope_type': 'yarn'", "`<|x|>` spelled in 9", "chat_template.jinja",
    ):  # fmt: skip
        assert words in body


@pytest.mark.parametrize("scaling", [None, RopeScaling("yarn", 4.0, 32768, mscale=1.5)])
def test_the_settings_in_it_are_those_of_a_run_that_starts_here(tmp_path, scaling):
    config = ModelConfig(
        layers=6, hidden=96, heads=9, kv_heads=3, head_dim=16, ffn=40, vocab_size=640,
        norm_eps=1e-5, rope_theta=1e6, tie_embeddings=False, architecture="qwen2",
        rope_scaling=scaling, router=RouterConfig(layers="1,4"),
    )  # fmt: skip
    backbone = Held()
    backbone.licence = backbone.chat_template = None
    shown = re.search("```yaml\n(.*?)```", model_card(backbone, config, {}), re.DOTALL)[1]
    (tmp_path / "run.yaml").write_text(shown)
    assert load_config_file(tmp_path / "run.yaml").model == config


def test_what_is_not_known_is_said():
    backbone = Held()
    backbone.licence = backbone.chat_template = None
    card = model_card(backbone, ModelConfig(), {})
    assert "license:" not in card and "licence not stated" in card
    assert "plain rotation" in card and "all in the vocabulary" in card
