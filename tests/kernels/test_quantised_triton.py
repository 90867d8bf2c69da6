"""The Triton kernel that rounds router keys to 8 bits: interpreted, and compiled for GPUs."""

from msa_kernels import quantised_triton

from tests.kernels.triton_cases import SHARED_BYTES, Launch, compiled, run_interpreted, shared_bytes

CONSTANTS = {"WHOLE": True, "CHUNKS": quantised_triton.CHUNKS, "D": 128}
LAUNCHES = {
    "quantise_heads": Launch(quantised_triton.quantise_heads, CONSTANTS, types={"values": "*i8"}),
}


def test_kernels_match_the_reference():
    run_interpreted("test_quantised.py")


@compiled(LAUNCHES)
def test_kernels_compile_for_gpus(launch, capability):
    assert shared_bytes(launch, capability) < SHARED_BYTES[capability]
