"""Losses and gradient norms that were once written down: training must not change in silence.

When it changes on purpose, print the new numbers with
`python -c "from tests.distributed.golden import train_five_steps; print(train_five_steps())"`
and say in the commit why they changed.
"""

import pytest

from tests.distributed.golden import train_five_steps
from tests.distributed.ranks import run_ranks

GOLDEN = [  # LM loss, router loss, gradient norm
    [4.925177, 2.092228, 4.603093],
    [4.877552, 1.745818, 3.212469],
    [4.266357, 1.978698, 2.93285],
    [4.170449, 1.604063, 2.249401],
    [4.141282, 2.862958, 2.883013],
]


def test_five_steps_are_those_written_down():
    (found,) = run_ranks(1, train_five_steps)
    assert len(found) == len(GOLDEN)
    for step, (ours, golden) in enumerate(zip(found, GOLDEN, strict=True)):
        assert ours == pytest.approx(golden, rel=1e-4), step
