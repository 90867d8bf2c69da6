"""Triton kernels without a GPU: tests run in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_interpreted(suite: str, chosen: str = "") -> None:
    """The tests of tests/kernels/<suite> through Triton's interpreter; chosen: as pytest -k."""
    # Triton reads TRITON_INTERPRET when it is imported: another process.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", chosen, f"tests/kernels/{suite}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
