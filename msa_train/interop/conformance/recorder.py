"""What the comparison of one case found."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

ATOL, RTOL = 2e-5, 1e-4


@dataclass
class Recorder:
    """Collects comparisons of one case: the largest error and where, or why it failed."""

    case: str
    compared: int = 0
    largest_error: float = 0.0
    largest_at: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def line(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        text = (
            f"{verdict}  {self.case}: {self.compared} tensors, largest error "
            f"{self.largest_error:.2e} ({self.largest_at})"
        )
        return "\n      ".join([text, *self.failures[:8]])

    def close(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Float tensors: within atol 2e-5, rtol 1e-4."""
        self.compared += 1
        if ours.shape != theirs.shape:
            self.fail(f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        if ours.numel() == 0:
            return
        ours, theirs = ours.detach().double(), theirs.double()
        infinite = torch.isinf(theirs)  # then ours is the same, or infinitely wrong
        error = (ours - theirs).abs().masked_fill(infinite & (ours == theirs), 0)
        worst = float(error.max())
        if not worst <= self.largest_error:  # also catches nan
            self.largest_error, self.largest_at = worst, name
        if not bool((error <= ATOL + RTOL * theirs.abs().masked_fill(infinite, 0)).all()):
            self.fail(f"{name}: error {worst:.2e}")

    def equal(self, name: str, ours: object, theirs: object) -> None:
        self.compared += 1
        if ours != theirs:
            self.fail(f"{name}: {ours}, expected {theirs}")

    def fail(self, what: str) -> None:
        self.failures.append(what)
