"""Compare this implementation with numbers that the authors' code produced.

A directory of cases (meta.json + safetensors each): training cases hold a padded batch, hidden
states, scores, losses and every gradient; serving cases hold pooled memory, scores, selections and
the logits of each decode step.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from msa_train.errors import ConformanceError
from msa_train.interop.conformance.recorder import Recorder
from msa_train.interop.conformance.serving import compare_serving
from msa_train.interop.conformance.training import compare_training


def find_cases(directory: Path) -> list[Path]:
    """Case directories below `directory`, by name. Raises ConformanceError when there is none."""
    cases = sorted(path.parent for path in directory.glob("*/meta.json"))
    if not cases:
        raise ConformanceError(
            f"{directory}: no conformance case found; give a directory that holds */meta.json"
        )
    return cases


def run_case(case: Path) -> Recorder:
    """Compare one case. A broken case file is a failure of that case, not of the run."""
    recorder = Recorder(case.name)
    try:
        meta = json.loads((case / "meta.json").read_text())
        weights = load_file(
            case.parent / meta.get("weights_from", case.name) / "weights.safetensors"
        )
        compare = compare_training if meta["kind"] == "train" else compare_serving
        compare(case, meta, weights, recorder)
    except Exception as error:  # whatever is wrong with one case, the others are still compared
        recorder.fail(f"{type(error).__name__}: {error}")
    return recorder
