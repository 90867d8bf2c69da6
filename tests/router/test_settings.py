"""Settings of a router: what they make of a model, and what they refuse."""

import pytest

from msa_train.errors import ConfigError
from msa_train.router.settings import FitSettings, StartSettings
from tests.batches import tiny_config


def test_a_start_gives_a_router_in_its_own_shape_that_only_votes():
    config = StartSettings().applied(tiny_config(depth=30))
    assert config.router_layers == (1, 5, 8) and config.reading_layers == ()
    assert (config.router_key_heads, config.router_head_dim) == (2, 16)  # as wide as the states
    assert config.router.query_reduce == "pooled" and config.router.gate == "none"
    given = StartSettings(layers="0,3", key_heads=3, head_dim=4, reads="3")
    config = given.applied(tiny_config())
    assert config.router_layers == (0, 3) and config.reading_layers == (3,)
    assert config.sizes["router_keys"] == 12


def test_layers_of_a_shallow_model_are_distinct():
    assert StartSettings().applied(tiny_config(depth=2)).router_layers == (0, 1)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (StartSettings, "passages", 0),
        (StartSettings, "key_heads", 0),
        (StartSettings, "head_dim", 0),
        (FitSettings, "steps", 0),
        (FitSettings, "lr", 0.0),
        (FitSettings, "temperature", 2.0),
        (FitSettings, "dropout", 1.0),
        (FitSettings, "patience", 0),
    ],
)
def test_impossible_values_are_refused_by_name(kind, field, value):
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        kind(**{field: value})


def test_layers_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="layers is '9'"):
        StartSettings(layers="9").applied(tiny_config())
    with pytest.raises(ConfigError, match="reads is '2'"):
        StartSettings(layers="0", reads="2").applied(tiny_config())
