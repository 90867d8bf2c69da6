"""Which values of a loss are called a jump, and the rows of sample retrievals."""

import math

import pytest

from msa_train.training.tracking.retrievals import COLUMNS, SNIPPET, Retrieved, retrieval_rows
from msa_train.training.tracking.spikes import SpikeWatch


def spikes(values, spreads=10.0, **how):
    watch = SpikeWatch(spreads, **how)
    return [place for place, value in enumerate(values) if watch.sees(value)]


FALLING = [5 * 0.97**step for step in range(100)]
NOISY = [2 + 0.1 * math.sin(7 * step) for step in range(200)]


@pytest.mark.parametrize("values", [FALLING, NOISY, [1.0] * 50, [0.0] * 50])
def test_ordinary_curves_have_none(values):
    assert spikes(values) == []


def test_a_jump_counts_once_while_it_lasts():
    values = [*NOISY[:60], 6.0, 7.0, 6.5, *NOISY[63:80], 6.0, *NOISY[81:]]
    assert spikes(values) == [60, 80]


def test_a_new_plateau_becomes_the_measure():
    values = NOISY[:60] + [v + 3 for v in NOISY[60:150]] + [20.0]
    assert spikes(values) == [60, 150]


def test_nothing_is_called_a_jump_before_enough_values():
    assert spikes([1.0] * 9 + [50.0]) == []
    assert spikes([1.0] * 10 + [50.0]) == [10]


def test_what_is_not_finite_is_a_jump_and_no_measure():
    assert spikes([math.nan, 1.0] + [1.0] * 20 + [math.inf, math.nan, 1.0, math.nan]) == [0, 22, 25]


def test_sensitivity_is_a_setting():
    values = [*NOISY[:60], 2.6]
    assert spikes(values, spreads=3) == [60]
    assert spikes(values, spreads=20) == []


def test_rows_of_retrievals():
    found = {5: [Retrieved(7, 0.9, "a  b\nc")], 2: [Retrieved(3, 0.8, "x" * 999),
             Retrieved(7, 0.1, "a b c")]}  # fmt: skip
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in retrieval_rows("who?", [7, 4], found)]
    assert [(row["layer"], row["rank"], row["document"], row["hit"]) for row in rows] == [
        (2, 1, 3, False), (2, 2, 7, True), (5, 1, 7, True)
    ]  # fmt: skip
    assert rows[0]["question"] == "who?" and rows[0]["positives"] == "4, 7"
    assert len(rows[0]["text"]) == SNIPPET and rows[2]["text"] == "a b c"
