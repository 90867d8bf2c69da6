"""The benchmarks run, say what they compare, and print JSON alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from msa_kernels import KernelError
from msa_kernels.bench import names, run
from msa_kernels.bench.measure import Floor, peak_memory_mb

ROW = {"name", "pass", "device", "dtype", "shape", "ours_ms", "baseline", "baseline_ms", "ratio",
       "floor_ms", "scratch_mb"}  # fmt: skip


def test_peak_memory_counts_what_is_alive_together():
    megabyte = 1 << 18  # float32 values

    def alternate():
        for _ in range(4):
            torch.ones(2 * megabyte)

    def together():
        return [torch.ones(2 * megabyte) for _ in range(4)]

    assert 1.9 < peak_memory_mb(alternate) < 2.1
    assert 7.9 < peak_memory_mb(together) < 8.1


def test_a_floor_is_the_larger_of_reading_and_multiplying():
    floor = Floor(bytes_per_ms=10, flops_per_ms=100)
    assert floor.ms(50, 100) == 5 and floor.ms(10, 700) == 7


def test_routing_prints_json_alone():
    command = [sys.executable, "-m", "msa_kernels.bench", "routing", "--json", "--repeats", "1"]
    # One thread: on a busy machine two wait for each other at the end of every small step.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(row.keys() >= ROW for row in found)
    route = next(row for row in found if row["name"] == "route" and row["pass"] == "forward")
    assert route["baseline"] == "published"
    assert route["scratch_mb"] <= 64 < route["baseline_scratch_mb"]
    # How much faster is for a quiet machine to say; slower it is on none.
    assert route["ratio"] > 1


@pytest.mark.parametrize("suite", ["states", "attention"])
def test_every_suite_runs(suite):
    found = run([suite], repeats=1)
    assert found and all(row.keys() >= ROW and row["ours_ms"] > 0 for row in found)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(KernelError, match=", ".join(names())):
        run(["rooting"])
