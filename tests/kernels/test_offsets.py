"""Rows so far out that their place needs more than 31 bits, in files that are mostly holes."""

import pytest
import torch
from msa_kernels import chunk_scores
from msa_kernels.cpu import pool as cpu_pool
from msa_kernels.dispatch import interpreting

from tests.kernels.kernel_cases import cu

WIDTH = 1024
ROWS = 2**21 + 70  # times WIDTH passes 2^31


@pytest.fixture
def far(tmp_path):
    """[ROWS, WIDTH] of zeros that take no room, the last 64 rows all ones."""
    x = torch.from_file(str(tmp_path / "far"), shared=True, size=ROWS * WIDTH, dtype=torch.float16)
    x = x.view(ROWS, WIDTH)
    x[-64:] = 1
    return x


def test_scores_of_far_chunks(far):
    query = torch.ones(1, WIDTH)
    index = torch.tensor([0, ROWS - 65, ROWS - 1])
    scores = chunk_scores(query, cu([1]), far, index, cu([3]))
    assert scores.tolist() == [0, 0, WIDTH]


def test_means_of_far_tokens(far):
    """Of the last tokens alone, so that the rest need not be read."""
    token_cu = torch.tensor([ROWS - 128, ROWS - 64, ROWS])
    if interpreting():
        from msa_kernels.gpu import pool as gpu

        (mean,), _ = gpu.chunk_means([far], token_cu, None)
    else:
        mean = cpu_pool.chunk_mean(far[-128:], token_cu - token_cu[0])
    assert not mean[0].any() and bool((mean[1] == 1).all())
