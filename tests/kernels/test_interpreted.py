"""The Triton kernels: the same tests through Triton's interpreter, and compiled for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import compiled_kernels

ROOT = Path(__file__).parents[2]
SUITES = ["test_pool.py", "test_route.py", "test_attend.py", "test_norm_rope.py",
          "test_quantised.py", "test_offsets.py", "test_operators.py"]  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_kernels_match_the_reference(suite):
    pytest.importorskip("triton", reason="triton is not installed")
    # Triton reads TRITON_INTERPRET when it is imported: another process.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"tests/kernels/{suite}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "capability"), compiled_kernels.CASES)
def test_kernels_compile_for_gpus(name, capability):
    pytest.importorskip("triton", reason="triton is not installed")
    assert compiled_kernels.shared_bytes(name, capability) < compiled_kernels.LIMIT[capability]
