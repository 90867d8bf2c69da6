"""Which evaluation is best: more recall, less loss, the earlier of equal ones."""

import math

import pytest

from msa_train.training.best import Best


@pytest.mark.parametrize(
    ("number", "values", "best"),
    [
        ("held_out/a/recall@1", [0.2, 0.5, 0.5, 0.4], 2),
        ("held_out/a/lm", [3.0, 2.0, 2.0, 2.5], 2),
        ("held_out/a_text/perplexity", [math.nan, 9.0, math.nan, 8.0], 4),
    ],
)
def test_the_best_so_far_stays(number, values, best):
    found = None
    for step, value in enumerate(values, 1):
        found = Best(number, step, value).or_before(found)
    assert found == Best(number, best, values[best - 1])


def test_what_is_not_a_number_is_never_the_best():
    assert Best("held_out/a/lm", 1, math.nan).or_before(None) is None
