"""Settings of a model: router layers, sizes, and what cannot be."""

import pytest

from msa_train.errors import ConfigError
from msa_train.model.config import PRESETS, ModelConfig, RouterConfig, parse_layers
from msa_train.model.weights import weight_shapes


@pytest.mark.parametrize(
    ("text", "layers"),
    [("upper_half", (2, 3, 4)), ("all", (0, 1, 2, 3, 4)), ("3,1", (1, 3)), ("4", (4,))],
)
def test_router_layers_are_read(text, layers):
    assert parse_layers("layers", text, 5) == layers


@pytest.mark.parametrize("text", ["", "two", "1,1", "5", "-1", "1,,2"])
def test_router_layers_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match=r"model\.router\.layers"):
        parse_layers("layers", text, 5)


def test_loss_layers_are_router_layers():
    router = RouterConfig(layers="1,3")
    assert ModelConfig(router=router).loss_layers == (1, 3)
    upper = RouterConfig(layers="1,3", loss_layers="upper_half")
    assert ModelConfig(router=upper).loss_layers == (3,)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"heads": 3}, "model.heads"), ({"head_dim": 7}, "model.head_dim"), ({"ffn": 0}, "model.ffn")],
)
def test_a_geometry_that_cannot_be_is_refused(change, key):
    with pytest.raises(ConfigError, match=key):
        ModelConfig(**change)


def test_stored_settings_of_any_age_are_read():
    new = {"layers": 6, "router": {"top_k": 3}}
    old = {"layers": 6, "router": {"top_k": 3, "gate_growth": False, "gate_documents": 128}}
    config = ModelConfig.from_settings(old)
    assert config == ModelConfig.from_settings(new) and config.router.top_k == 3
    with pytest.raises(ConfigError, match=r"gate_growth is True"):
        ModelConfig.from_settings({"router": {"gate_growth": True}})
    with pytest.raises(ConfigError, match=r"gate is 'document'"):
        ModelConfig.from_settings({"router": {"gate": "document"}})


def test_the_publications_model_has_its_size():
    shapes = weight_shapes(PRESETS["4b"])
    backbone = [shape for name, shape in shapes.items() if ".router_" not in name]
    count = sum(s[0] * (s[1] if len(s) == 2 else 1) for s in backbone)
    assert count == 4_022_468_096  # Qwen3-4B's
    routers = [name for name in shapes if name.endswith("router_q_proj.0.weight")]
    assert [int(name.split(".")[2]) for name in routers] == list(range(18, 36))
