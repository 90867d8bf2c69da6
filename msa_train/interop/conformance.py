"""Compare this implementation with numbers that the authors' code produced.

A directory of cases (meta.json + safetensors each): training cases hold a padded batch, hidden
states, scores, losses and every gradient; serving cases hold pooled memory, scores, selections and
the logits of each decode step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from msa_train.errors import ConformanceError
from msa_train.interop.conformance_serving import compare_serving
from msa_train.interop.conformance_training import compare_training

ATOL, RTOL = 2e-5, 1e-4

Comparison = Callable[[str, Tensor, Tensor], None]


@dataclass
class CaseReport:
    """One case: the largest error and where, or why it failed."""

    case: str
    compared: int = 0
    largest_error: float = 0.0
    largest_at: str = ""
    failures: tuple[str, ...] = ()

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


class Recorder:
    """Collects comparisons of one case."""

    def __init__(self, case: str):
        self.report = CaseReport(case)

    def close(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Float tensors: within atol 2e-5, rtol 1e-4."""
        report = self.report
        report.compared += 1
        if ours.shape != theirs.shape:
            self.fail(f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        if ours.numel() == 0:
            return
        ours, theirs = ours.detach().double(), theirs.double()
        same = torch.isinf(theirs) & (ours == theirs)
        error = (ours - theirs).abs().masked_fill(same, 0)
        worst = float(error.max())
        if not worst <= report.largest_error:  # also catches nan
            report.largest_error, report.largest_at = worst, name
        if not bool((error <= ATOL + RTOL * theirs.abs().masked_fill(same, 0)).all()):
            self.fail(f"{name}: error {worst:.2e}")

    def equal(self, name: str, ours: object, theirs: object) -> None:
        self.report.compared += 1
        if ours != theirs:
            self.fail(f"{name}: {ours}, expected {theirs}")

    def fail(self, what: str) -> None:
        self.report.failures += (what,)


def find_cases(directory: Path) -> list[Path]:
    """Case directories below `directory`, by name. Raises ConformanceError when there is none."""
    cases = sorted(path.parent for path in directory.glob("*/meta.json"))
    if not cases:
        raise ConformanceError(
            f"{directory}: no conformance case found; give a directory that holds */meta.json"
        )
    return cases


def run_case(case: Path) -> CaseReport:
    """Compare one case. A broken case file is a failure of that case, not of the run."""
    recorder = Recorder(case.name)
    try:
        meta = json.loads((case / "meta.json").read_text())
        weights = load_file(
            case.parent / meta.get("weights_from", case.name) / "weights.safetensors"
        )
        if meta["kind"] == "train":
            compare_training(case, meta, weights, recorder)
        else:
            compare_serving(case, meta, weights, recorder)
    except Exception as error:  # whatever is wrong with one case, the others are still compared
        recorder.fail(f"{type(error).__name__}: {error}")
    return recorder.report
