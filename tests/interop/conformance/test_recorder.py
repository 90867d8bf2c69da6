"""What a comparison calls equal, and what it says of the rest."""

import pytest
import torch

from msa_train.interop.conformance.recorder import Recorder

ONES = torch.ones(2, 2)


def test_what_is_within_the_tolerance_passes():
    recorder = Recorder("case")
    recorder.close("a", ONES + 1e-5, ONES)
    recorder.close("b", torch.tensor([-torch.inf, 100.005]), torch.tensor([-torch.inf, 100.0]))
    recorder.close("empty", ONES[:0], ONES[:0])
    recorder.equal("chosen", [1, 2], [1, 2])
    assert recorder.passed and recorder.compared == 4
    assert recorder.largest_at == "b" and recorder.largest_error == pytest.approx(0.005, rel=1e-3)
    assert recorder.line() == "pass  case: 4 tensors, largest error 5.00e-03 (b)"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ONES + 1.3e-4, ONES),
        (ONES * torch.nan, ONES),
        (ONES, ONES * torch.inf),
        (ONES * -torch.inf, ONES * torch.inf),
        (ONES[:1], ONES),
    ],
)
def test_what_is_not_fails_by_name(ours, theirs):
    recorder = Recorder("case")
    recorder.close("scores", ours, theirs)
    recorder.equal("chosen", 3, 3)
    (failure,) = recorder.failures
    assert failure.startswith("scores:")
    assert recorder.line().startswith("FAIL  case: 2 tensors")


def test_every_failure_counts_and_the_first_are_shown():
    recorder = Recorder("case")
    for place in range(10):
        recorder.equal(f"step {place}", place, -1)
    assert len(recorder.failures) == 10
    assert recorder.line().splitlines()[-1].strip() == "step 7: 7, expected -1"
