"""The Triton kernels of chunk pooling: interpreted, and compiled for GPUs."""

from msa_kernels import pool_triton

from tests.kernels.triton_cases import SHARED_BYTES, Launch, compiled, run_interpreted, shared_bytes

CONSTANTS = {"ROWS": pool_triton.ROWS, "BLOCK": pool_triton.BLOCK}
LAUNCHES = {
    "mean_forward": Launch(pool_triton.mean_forward, CONSTANTS),
    "mean_backward": Launch(pool_triton.mean_backward, CONSTANTS),
}


def test_kernels_match_the_reference():
    run_interpreted("test_pool.py")


@compiled(LAUNCHES)
def test_kernels_compile_for_gpus(launch, capability):
    assert shared_bytes(launch, capability) < SHARED_BYTES[capability]
