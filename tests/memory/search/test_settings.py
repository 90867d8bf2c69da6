"""The settings of a memory's tiers."""

import pytest

from msa_train.errors import ConfigError
from msa_train.memory.search.settings import KEY_FORMS, TierSettings


def test_wrong_settings_are_refused_by_name():
    for settings in ({"keys": "int4"}, {"states": "tape"}, {"hot_mb": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            TierSettings(**settings)


@pytest.mark.parametrize("form", KEY_FORMS)
def test_every_form_of_keys_is_a_setting(form):
    assert TierSettings(keys=form).keys == form
