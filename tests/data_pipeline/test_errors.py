"""The check that most settings need."""

from types import SimpleNamespace

import pytest

from data_pipeline.errors import DataError, check_least
from msa_train.errors import ConfigError


def test_the_first_setting_below_the_least_is_refused_by_name():
    settings = SimpleNamespace(rounds=1, steps=0, tokens=None, rate=-0.5)
    check_least(0, settings, "run.", "rounds", "steps", "tokens")
    with pytest.raises(DataError, match=r"run\.steps is 0: give 1 or more"):
        check_least(1, settings, "run.", "rounds", "tokens", "steps", "rate")
    with pytest.raises(ConfigError, match=r"rate is -0\.5: give 0 or more"):
        check_least(0, settings, "", "rate", error=ConfigError)
    with pytest.raises(DataError, match="rate is nan: give 0 or more"):
        check_least(0, SimpleNamespace(rate=float("nan")), "", "rate")
