"""Where these tests run: on a GPU, or skipped. MSA_GPU_TESTS_ON=cpu runs them on the CPU, to see
that they can pass and fail."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    named = os.environ.get("MSA_GPU_TESTS_ON", "cuda")
    if named == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, which tests see under `pytest -m gpu` alone")
    return torch.device(named)


@pytest.fixture(scope="session")
def cuda(device):
    """Of tests about what a CPU does not have."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device: graphs and streams are CUDA's")
    return device
