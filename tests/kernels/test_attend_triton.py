"""The Triton kernels of attention: interpreted, and compiled for GPUs."""

import pytest
from msa_kernels import attend_triton

from tests.kernels.triton_cases import (
    FLOAT32,
    SHARED_BYTES,
    Launch,
    compiled,
    run_interpreted,
    shared_bytes,
)

OPERATOR = "operator or compiled"  # tests of the operator; slow, so in a process of their own
FORWARD, BACKWARD = "attend", "attend_backward"  # whose tiles a kernel takes
GATED, WIDE = {"BIAS": True, "D": 128}, {"BIAS": True, "D": 256}
SUMS = {"dk": "*fp32", "dv": "*fp32"}  # of entries, which are added up before they are rounded
QUERY, TOKEN = attend_triton.query_gradient, attend_triton.token_gradient
ENTRY, ATTEND = attend_triton.entry_gradient, attend_triton.attend_forward
LAUNCHES = {
    "attend_forward": Launch(ATTEND, GATED, FORWARD),
    "attend_forward_float32": Launch(ATTEND, GATED, FORWARD, FLOAT32),
    "attend_forward_wide": Launch(ATTEND, WIDE, FORWARD),
    "query_gradient": Launch(QUERY, GATED, BACKWARD),
    "query_gradient_float32": Launch(QUERY, GATED, BACKWARD, FLOAT32),
    "token_gradient": Launch(TOKEN, {"D": 128}, BACKWARD),
    "token_gradient_float32": Launch(TOKEN, {"D": 128}, BACKWARD, FLOAT32),
    "entry_gradient": Launch(ENTRY, GATED, BACKWARD, SUMS),
    "entry_gradient_float32": Launch(ENTRY, GATED, BACKWARD, FLOAT32),
    "entry_gradient_wide": Launch(ENTRY, WIDE, BACKWARD, SUMS),
    "row_products": Launch(attend_triton.row_products, {"D": 128, "M": 64}),
}


@pytest.mark.parametrize("chosen", ["gradients", OPERATOR, f"not (gradients or {OPERATOR})"])
def test_kernels_match_the_reference(chosen):
    run_interpreted("test_attend.py", chosen)


@compiled(LAUNCHES)
def test_kernels_compile_for_gpus(launch, capability):
    assert shared_bytes(launch, capability) < SHARED_BYTES[capability]
