"""The Triton kernels of normalised and rotated heads, interpreted."""

from tests.kernels.triton_cases import run_interpreted


def test_kernels_match_the_reference():
    run_interpreted("test_norm_rope.py")
