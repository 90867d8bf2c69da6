"""The benchmarks of kernels run, say what they compare, and print JSON alone."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from msa_train.bench.floor import Floor
from msa_train.bench.kernels import suites
from msa_train.errors import ConfigError

ROW = {"name", "pass", "device", "dtype", "shape", "ours_ms", "baseline", "baseline_ms", "ratio",
       "floor_ms", "scratch_mb"}  # fmt: skip


@pytest.mark.slow
def test_routing_prints_json_alone():
    command = [sys.executable, "-m", "msa_train.cli", "bench", "kernels", "routing", "--json"]
    # One thread: on a busy machine two wait for each other at the end of every small step.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--repeats", "1"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(row.keys() >= ROW for row in found)
    assert {row["name"] for row in found} == {"route", "certified", "score_selected"}
    route = next(row for row in found if row["name"] == "route" and row["pass"] == "forward")
    assert route["baseline"] == "published"
    assert route["scratch_mb"] <= 64 < route["baseline_scratch_mb"]
    # How much faster is for a quiet machine to say; slower it is on none.
    assert route["ratio"] > 1


@pytest.mark.parametrize(
    ("suite", "names"),
    [
        ("states", {"pool", "norm_rope"}),
        ("attention", {"pool+attend", "document_attention"}),
    ],
)
def test_every_suite_runs(suite, names, monkeypatch):
    """At a sixteenth of the published sizes: what is asserted does not depend on them."""
    monkeypatch.setattr(suites, "POOLED", {"cpu": 1024, "cuda": 65_536})
    monkeypatch.setattr(suites, "ATTENDING", 8)
    monkeypatch.setattr(suites, "CONTEXTS", 2)
    monkeypatch.setattr(suites, "Floor", SimpleNamespace(of=lambda dtype: Floor(1e6, 1e6)))
    found = suites.suite_rows(suite, 1)
    assert {row["name"] for row in found} == names
    assert all(row.keys() >= ROW for row in found)
    # A backward pass is the difference of two timings, and these are short.
    assert all(row["ours_ms"] > 0 for row in found if row["pass"] != "backward")


def test_all_sides_pool_to_the_same_states():
    torch.manual_seed(1)
    pool, beside = suites._pool(2048, torch.float32)
    expected = pool.ours()
    for run in (*pool.baselines.values(), *beside.baselines.values()):
        for ours, theirs in zip(expected, run(), strict=True):
            theirs = theirs.view_as(ours)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_a_certified_search_finds_what_full_precision_finds():
    torch.manual_seed(1)
    cases = [case for case in suites._narrow_keys(600, 8) if case.name == "certified"]
    assert [str(case.dtype) for case in cases] == ["torch.int8", "torch.float8_e4m3fn"]
    for case in cases:
        (exact,) = case.baselines.values()
        assert case.ours().places.tolist() == exact()[1].tolist()


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="'rooting' is unknown; there are routing, states"):
        suites.measure(["rooting"])
    with pytest.raises(ConfigError, match="repeats is 0"):
        suites.measure(["states"], repeats=0)
