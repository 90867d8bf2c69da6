"""Runs on two ranks, started once for all tests here; those of `whole` take a minute."""

import pytest

from tests.distributed.ranks import run_ranks
from tests.training.planner.observed import CACHE, observe

BF16, TWICE = {"precision": "bf16"}, 2  # samples of a step
RECOMPUTE = ("none", "attention", "layer")
SEQUENCE = {"sequence_parallel": True, "tensor_parallel": 2}
CACHED = {"gradient_cache_tokens": CACHE}
DATA = {
    **{f"zero{stage}": ({"zero_stage": stage}, 1) for stage in range(4)},
    **{f"zero{stage}-bf16": ({"zero_stage": stage, **BF16}, TWICE) for stage in (1, 2, 3)},
    **{f"zero{stage}-cached": ({"zero_stage": stage, **CACHED}, 1) for stage in (1, 2, 3)},
    "zero1-layer": ({"zero_stage": 1, "recompute": "layer"}, 1),
}
TENSOR = {
    **{name: ({"recompute": name}, 1) for name in RECOMPUTE},
    "cached": (CACHED, 1),
    **{f"sequence-{name}": (SEQUENCE | {"recompute": name}, 1) for name in RECOMPUTE},
    "sequence-cached": (SEQUENCE | CACHED, 1),
}
QUICK = {"zero1-bf16", "zero2-cached"}
RUNS = {name: (1, run) for name, run in DATA.items()} | {
    name: (2, run) for name, run in TENSOR.items()
}


def names(of=RUNS):
    """To parametrize a test by: those that are not quick are slow tests."""
    slow = pytest.mark.slow
    return [name if name in QUICK else pytest.param(name, marks=slow) for name in of]


def _observed(chosen):
    found = {}
    for tensor, group in ((1, DATA), (2, TENSOR)):
        runs = {name: run for name, run in group.items() if chosen(name)}
        found |= run_ranks(2, observe, tensor, runs)[0]
    return found


@pytest.fixture(scope="session")
def quick():
    return _observed(lambda name: name in QUICK)


@pytest.fixture(scope="session")
def whole():
    return _observed(lambda name: name not in QUICK)


@pytest.fixture
def observed(request):
    """What was seen of a run, by its name."""
    return lambda name: request.getfixturevalue("quick" if name in QUICK else "whole")[name]
