"""The Triton kernels of attention, interpreted; and how rows are cut into tiles."""

import pytest
import torch
from msa_kernels.dispatch import interpreting
from msa_kernels.ragged import cumulative

from tests.kernels.triton_cases import run_interpreted

OPERATOR = "operator or compiled"  # tests of the operator; slow, so in a process of their own


@pytest.mark.parametrize("chosen", ["gradients", OPERATOR, f"not (gradients or {OPERATOR})"])
def test_kernels_match_the_reference(chosen):
    run_interpreted("test_attend.py", chosen)


def test_tiles_are_placed_in_the_interpreter():
    run_interpreted("test_attend_triton.py", "hold_every_row")


@pytest.mark.skipif(not interpreting(), reason="run by the test above")
@pytest.mark.parametrize("size", [1, 4, 16])
def test_tiles_hold_every_row_of_a_context_once(size):
    from msa_kernels.attend_triton import _row_tiles

    lengths = [0, 5, 16, 0, 0, 33, 1, 0]
    for part in (lengths, lengths[5:], lengths[1:2], [1] * 300):
        cu = cumulative(torch.tensor(part))
        found = _row_tiles(cu, size, sum(part))
        places = [
            (context, row) for context, row in zip(*(x.tolist() for x in found), strict=True)
            if context < len(part)
        ]  # fmt: skip
        wanted = [
            (context, row)
            for context in range(len(part))
            for row in range(int(cu[context]), int(cu[context + 1]), size)
        ]
        assert places == wanted
