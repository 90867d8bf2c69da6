"""Every layout computes what one rank does: losses, gradients, norms, what is found, weights.

The table of it: `python -m tests.distributed.comparing docs/results/layouts`.
"""

import pytest
import torch

from msa_train.config import load_config
from msa_train.errors import ConfigError
from tests.distributed.comparing import MARGIN, bounds_of, compared
from tests.distributed.equality import (
    CASES,
    DTYPES,
    LAYOUTS,
    alone,
    on_ranks,
    runs_of,
)

# Two ranks, in double precision: in `make test`, where tests/parallel/test_documents.py has shared
# documents.
QUICK = {
    "ZeRO-3": ["ragged banks"],
    "TP 2 + SP": ["cache and recompute", "labels of documents"],
}


def _quick(layout, case, dtype):
    return dtype == "float64" and case in QUICK.get(layout, [])


@pytest.fixture(scope="module")
def quick():
    return _found([run for run in runs_of(LAYOUTS) if _quick(*run)])


@pytest.fixture(scope="module")
def whole():
    return _found([run for run in runs_of(LAYOUTS) if not _quick(*run)])


def _found(runs):
    return alone(runs), on_ranks(runs)


def _given():
    for run in runs_of(LAYOUTS):
        yield pytest.param(*run, marks=[] if _quick(*run) else [pytest.mark.slow])


@pytest.mark.parametrize(("layout", "case", "dtype"), list(_given()))
def test_a_layout_computes_what_one_rank_does(request, layout, case, dtype):
    run = layout, case, dtype
    ones, found = request.getfixturevalue("quick" if _quick(*run) else "whole")
    spread, one = LAYOUTS[layout], ones["", case, dtype]
    ranks = [rank[run] for rank in found[layout]]
    seen, most = compared(spread, run, ranks, one), bounds_of(spread, dtype)
    assert seen.losses <= most.losses and seen.norms <= most.losses, seen
    assert seen.gradients <= most.gradients and seen.weights <= most.weights, seen
    assert seen.margin > MARGIN, seen
    for rank in ranks:
        assert rank["queue"].keys() == one["queue"].keys()
        for key, value in rank["queue"].items():
            torch.testing.assert_close(value, one["queue"][key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_changes_every_weight(whole, dtype):
    """Else equal weights and gradients would say little."""
    one = whole[0]["", "ragged banks", dtype]
    assert all(gradient.any() for gradient in one["gradients"].values())


def test_split_tokens_are_halved(quick):
    """The states between the products, on each of two ranks; an odd number with one of padding."""
    _, found = quick
    for rank in found["TP 2 + SP"]:
        run = rank["TP 2 + SP", "labels of documents", "float64"]
        tokens = run["tokens"]
        assert tokens % 2 and run["rows"] == {(tokens + 1) // 2}


def test_three_kv_heads_are_not_divided_by_two_ranks():
    """Which is why the table has no such case of tensor parallelism."""
    assert CASES["three kv heads"].model.kv_heads == 3
    with pytest.raises(ConfigError, match=r"model.kv_heads is 3, not divisible by .* \(2\)"):
        load_config(
            ["--training.tensor_parallel", "2", "--model.heads", "6", "--model.kv_heads", "3"]
        )
