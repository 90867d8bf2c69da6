"""How far a layout's numbers are from those of one rank, and what far is.

`python -m tests.distributed.comparing docs/results/layouts` runs the whole table (equality.py) and
writes it as .json and .md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from msa_train.model.weights import published_weights
from tests.distributed.equality import (
    CASES,
    DTYPES,
    LAYOUTS,
    Run,
    Spread,
    alone,
    on_ranks,
    refused,
    runs_of,
)

# Between a document that is found and the next, in units of the largest difference of any score
# that layouts have: else that both find the same would be chance.
MARGIN = 10


@dataclass(frozen=True)
class Bounds:
    """Largest relative differences: of a loss or norm; of a gradient, by its tensor's largest; of a
    weight after five steps, likewise."""

    losses: float
    gradients: float
    weights: float


def bounds_of(spread: Spread, dtype: str) -> Bounds:
    """Under ZeRO, DeepSpeed keeps weights in single precision, and sends gradients in it, whatever
    the model is of."""
    if dtype == "float32":
        return Bounds(3e-6, 3e-5, 1e-6)
    return Bounds(1e-6, 1e-6, 1e-6) if spread.zero else Bounds(1e-12, 1e-11, 1e-11)


@dataclass(frozen=True)
class Compared:
    """Largest differences, as in Bounds; norms: of gradients; margin: the smallest between scores,
    by the largest difference; where: the gradient that is furthest off."""

    losses: float
    norms: float
    gradients: float
    weights: float
    margin: float
    where: str


def compared(spread: Spread, run: Run, ranks: list[dict], alone: dict) -> Compared:
    """Results of a run on all ranks, and of its case on one. Asserts that both found the same
    documents."""
    ours, first, model = alone["steps"], ranks[0], CASES[run[1]].model
    losses = max(
        _apart(a, b)
        for mine, theirs in zip(first["steps"], ours, strict=True)
        for a, b in zip(mine["losses"], theirs["losses"], strict=True)
    )
    norms = max(
        _apart(mine["norm"], theirs["norm"])
        for mine, theirs in zip(first["steps"], ours, strict=True)
    )
    furthest, margin = {}, _margin(ranks, ours)
    for what in ("gradients", "weights"):
        parts = [_tensors(rank[what]) for rank in ranks[: spread.tensor]]
        whole = dict(published_weights([_tensors(alone[what])], model))
        found = {
            name: float((part.double() - whole[name].double()).abs().max())
            / max(1e-3, float(whole[name].abs().max()))
            for name, part in published_weights(parts, model)
        }
        assert found.keys() == whole.keys()
        furthest[what] = max((value, name) for name, value in found.items())
    (gradients, where), (weights, _) = furthest.values()
    return Compared(losses, norms, gradients, weights, margin, where)


def _tensors(arrays: dict) -> dict:
    return {name: torch.from_numpy(each) for name, each in arrays.items()}


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(1e-3, abs(b))


def _margin(ranks: list[dict], alone: list[dict]) -> float:
    """Every context must be on some rank, and find there what it finds on one. The distance of
    scores that lie next to each other, the last of which is found, by the largest difference."""
    off, gap = 0.0, np.inf
    for step, whole in enumerate(alone):
        for sample, expected in whole["routed"].items():
            contexts = set()
            for rank in ranks:
                if sample not in rank["steps"][step]["routed"]:
                    continue
                found = rank["steps"][step]["routed"][sample]
                contexts |= set(range(found["contexts"].start, found["contexts"].stop))
                for layer, (documents, scores) in found["layers"].items():
                    chosen, known = (each[found["contexts"]] for each in expected["layers"][layer])
                    assert (documents == chosen).all(), (step, sample, layer)
                    finite = np.isfinite(known)
                    assert (finite == np.isfinite(scores)).all()
                    off = max(off, np.abs(scores[finite] - known[finite]).max(initial=0.0))
                    gap = min(gap, _gap(known, documents.shape[1]))
            assert contexts == set(range(expected["contexts"].stop)), "each is asked on some rank"
    return float(min(gap / max(off, 1e-30), 1e30))


def _gap(scores: np.ndarray, top_k: int) -> float:
    """The smallest distance of the best scores of any context, and of the next one."""
    ordered = -np.sort(-scores, 1)
    with np.errstate(invalid="ignore"):
        gaps = ordered[:, :-1] - ordered[:, 1:]
    gaps = gaps[:, :top_k]
    return gaps[np.isfinite(gaps)].min(initial=np.inf)


_COLUMNS = "losses", "norms", "gradients", "weights", "margin"


def table(
    runs: list[Run], ones: dict[Run, dict], found: dict[str, list[dict[Run, dict]]]
) -> dict[str, dict]:
    """Of each layout and dtype the furthest of all its cases, and why it has no others."""
    rows = {}
    for name, spread in LAYOUTS.items():
        reasons = Counter(why for case in CASES if (why := refused(spread, case)))
        for dtype in DTYPES:
            mine = [run for run in runs if (run[0], run[2]) == (name, dtype)]
            each = {
                run[1]: compared(
                    spread, run, [rank[run] for rank in found[name]], ones["", *run[1:]]
                )
                for run in mine
            }
            worst = {
                column: (min if column == "margin" else max)(
                    getattr(one, column) for one in each.values()
                )
                for column in _COLUMNS
            }
            rows[f"{name}, {dtype}"] = {
                "ranks": spread.ranks,
                "cases": {case: asdict(one) for case, one in each.items()},
                "left out": reasons,
                "worst": worst,
            }
    return rows


def _page(rows: dict[str, dict]) -> str:
    lines = [
        "# Layouts against one rank",
        "",
        "Written by `python -m tests.distributed.comparing docs/results/layouts` (gloo ranks, a",
        "model of four layers). Largest relative differences of all cases, over five steps of",
        "gradient descent: losses and gradient norms of each step, gradients of the first and",
        "weights after the last by the largest number of their tensor. Documents that are found",
        "are the same in every step; margin: the smallest distance between the score of one and",
        "the next best, by the largest difference of any score.",
        "",
        f"| layout, dtype | ranks | cases | {' | '.join(_COLUMNS)} |",
        f"|{'---|' * (3 + len(_COLUMNS))}",
    ]
    for name, row in rows.items():
        numbers = " | ".join(f"{row['worst'][column]:.1e}" for column in _COLUMNS)
        lines.append(f"| {name} | {row['ranks']} | {len(row['cases'])} | {numbers} |")
    lines += ["", "Cases: " + ", ".join(CASES) + ". Left out:", ""]
    left = {why: None for row in rows.values() for why in row["left out"]}
    return "\n".join([*lines, *(f"* {why}" for why in left), ""])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    every = list(runs_of(LAYOUTS))
    made = table(every, alone(every), on_ranks(every))
    target.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n")
    target.with_suffix(".md").write_text(_page(made))
