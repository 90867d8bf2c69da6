"""A run whose ranks are killed goes on, and loses what it is said to lose."""

import pytest

from msa_train.bench import goodput


@pytest.mark.slow
def test_a_killed_run_loses_steps_and_goes_on():
    killed, alone = goodput.measure(seconds=90, kill_every_s=40)
    assert killed["kills"] >= 1 and killed["starts"] >= 2 and alone["kills"] == 0
    assert 0 < killed["goodput"] < alone["goodput"] <= 1
