"""The benchmarks run, agree with what they measure, and print JSON alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from msa_kernels import KernelError
from msa_kernels.bench import names, run
from msa_kernels.bench.measure import peak_memory_mb


def test_peak_memory_counts_what_is_alive_together():
    megabyte = 1 << 18  # float32 values

    def alternate():
        for _ in range(4):
            torch.ones(2 * megabyte)

    def together():
        return [torch.ones(2 * megabyte) for _ in range(4)]

    assert 1.9 < peak_memory_mb(alternate) < 2.1
    assert 7.9 < peak_memory_mb(together) < 8.1


def test_routing_prints_json_alone():
    command = [sys.executable, "-m", "msa_kernels.bench", "routing", "--json", "--repeats", "1"]
    # One thread: on a busy machine two wait for each other at the end of every small step.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["max_abs_diff"] <= 1e-6
    assert result["scratch_mb"] <= 64 < result["published_scratch_mb"]
    # How much faster is for a quiet machine to say; slower it is on none.
    assert result["ratio"] > 1


def test_operations_are_all_measured():
    result = run("operations", repeats=1)
    assert {"chunk_mean", "document_scores", "document_attention", "context_attention"} < set(
        result
    )
    assert result["context_attention"]["forward_ms"] > 0


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(KernelError, match=", ".join(names())):
        run("rooting")
