"""The Triton kernels of scores: interpreted, and what they refuse."""

import pytest
import torch
from msa_kernels import KernelError, scores_triton

from tests.kernels.triton_cases import run_interpreted


def test_kernels_match_the_reference():
    run_interpreted("test_scores.py")


def test_places_that_32_bits_cannot_hold_are_refused():
    keys = torch.empty(1_562_500, 1, device="meta")  # 100M memory tokens
    assert scores_triton.token_bits(torch.empty(2047, 1, device="meta"), keys) == 11
    with pytest.raises(KernelError, match="2048 query tokens times 1562500 chunks are too many"):
        scores_triton.token_bits(torch.empty(2048, 1, device="meta"), keys)
