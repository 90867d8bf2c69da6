"""The Triton kernels of normalised and rotated heads: interpreted, and compiled for GPUs."""

from msa_kernels import norm_rope_triton

from tests.kernels.triton_cases import SHARED_BYTES, Launch, compiled, run_interpreted, shared_bytes

CONSTANTS = {"ROWS": norm_rope_triton.ROWS, "HALF": 64}
LAUNCHES = {
    "norm_rope_forward": Launch(norm_rope_triton.norm_rope_forward, CONSTANTS),
    "norm_rope_backward": Launch(norm_rope_triton.norm_rope_backward, CONSTANTS),
}


def test_kernels_match_the_reference():
    run_interpreted("test_norm_rope.py")


@compiled(LAUNCHES)
def test_kernels_compile_for_gpus(launch, capability):
    assert shared_bytes(launch, capability) < SHARED_BYTES[capability]
