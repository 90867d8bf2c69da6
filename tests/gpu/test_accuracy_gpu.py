"""Kernels and models on a GPU against float64 on the CPU: RMS error ratios, as in the battery."""

import pytest
import torch
from msa_kernels import backend_report
from msa_kernels.dispatch import TRITON_OPERATIONS, interpreting

from msa_train.bench.gpu.accuracy import CHECKS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", CHECKS)
def test_the_error_is_below_what_is_allowed(name, device):
    check = CHECKS[name]
    if interpreting() and not name.endswith("float32"):
        pytest.skip("Triton's interpreter multiplies narrow numbers wrongly")
    if "32-bit" in name and device.type == "cuda" and torch.cuda.mem_get_info()[0] < 13e9:
        pytest.skip("needs 13 GB of free GPU memory")
    error = check.error(device)
    assert error < check.allowed


def test_everything_with_a_kernel_runs_on_it(cuda):
    report = backend_report(cuda)
    assert {report[name]["backend"] for name in TRITON_OPERATIONS} == {"triton"}
