"""What is asked of a reading model: rows that exist, each once."""

import pytest

from msa_train.errors import ConfigError
from msa_train.evaluation.settings import ROWS, ReadingTest


def test_rows_are_named_once():
    assert ReadingTest(rows="none, router_3,none").row_names == ("none", "router_3")
    assert len(ReadingTest().row_names) == ROWS.count(",") + 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": "router"}, "rows holds 'router'"),
        ({"rows": "router_0"}, "rows holds 'router_0'"),
        ({"rows": "oracle_1"}, "rows holds 'oracle_1'"),
        ({"questions": 0}, "questions is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        ReadingTest(**settings)
