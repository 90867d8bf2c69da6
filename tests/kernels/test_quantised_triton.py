"""The Triton kernel that rounds router keys to 8 bits, interpreted."""

from tests.kernels.triton_cases import run_interpreted


def test_kernels_match_the_reference():
    run_interpreted("test_quantised.py")
