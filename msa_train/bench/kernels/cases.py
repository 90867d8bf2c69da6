"""One benchmark case: ours and its baselines on the same tensors, as rows of a report."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from msa_kernels.ragged import cumulative
from torch import Tensor

from msa_train.bench.floor import Floor
from msa_train.bench.runner import in_turns, tensors_mb

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, CHUNK = 2560, 32, 8, 128, 64  # of the published 4B model
WIDTH = KV_HEADS * HEAD_DIM
SCALE = HEAD_DIM**-0.5

Pass = Literal["forward", "backward", "forward+backward"]
Run = Callable[[], Any]  # where there are inputs: to a tensor, or to a tuple of tensors


@dataclass
class Case:
    """baselines: by name, what computes the same (or what it is to be compared with).

    inputs: differentiable ones; without any only the forward pass is measured. moved, flops: of
    the forward pass; the backward pass is counted with `backward_factor` times as much.
    """

    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    ours: Run
    baselines: dict[str, Run]
    moved: float
    flops: float
    inputs: list[Tensor] = field(default_factory=list)
    backward_factor: float = 2.0
    together: bool = False  # forward and backward as one row


def beside_reference(case: Case, reference: Run) -> Case:
    """The forward pass beside the reference, whose loops no backward pass should go through."""
    return replace(case, baselines={"reference": reference}, inputs=[], together=False)


def rows(case: Case, floor: Floor, repeats: int) -> list[dict]:
    """A row for each pass and baseline."""
    sides = {"ours": case.ours, **case.baselines}
    timed = {f"{name} forward": run for name, run in sides.items()}
    if case.inputs:
        timed |= {f"{name} both": _both(run, case.inputs) for name, run in sides.items()}
    times = {name: statistics.median(ms) for name, ms in in_turns(timed, repeats).items()}
    found = []
    for kind in _passes(case):
        run = case.ours if kind == "forward" else _both(case.ours, case.inputs)
        scratch = tensors_mb(run)
        for baseline, other in case.baselines.items():
            ours_ms, theirs = (_time(times, name, kind) for name in ("ours", baseline))
            other = other if kind == "forward" else _both(other, case.inputs)
            moved, flops = (x * _factor(case, kind) for x in (case.moved, case.flops))
            floor_ms = floor.ms(moved, flops)
            found.append(
                {
                    "name": case.name,
                    "pass": kind,
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "shape": case.shape,
                    "ours_ms": round(ours_ms, 3),
                    "baseline": baseline,
                    "baseline_ms": round(theirs, 3),
                    "ratio": round(theirs / ours_ms, 2),
                    "moved_mb": round(moved / (1 << 20), 2),
                    "gflop": round(flops / 1e9, 3),
                    "floor_ms": round(floor_ms, 3),
                    "percent_of_floor": round(100 * floor_ms / ours_ms, 1),
                    "scratch_mb": round(scratch, 2),
                    "baseline_scratch_mb": round(tensors_mb(other), 2),
                    "threads": torch.get_num_threads(),
                }
            )
    return found


def _passes(case: Case) -> list[Pass]:
    if not case.inputs:
        return ["forward"]
    return ["forward+backward"] if case.together else ["forward", "backward"]


def _factor(case: Case, kind: Pass) -> float:
    """How often a pass moves and multiplies what the forward pass does."""
    backward = case.backward_factor
    return {"forward": 1.0, "backward": backward, "forward+backward": 1.0 + backward}[kind]


def _time(times: dict[str, float], name: str, kind: Pass) -> float:
    forward = times[f"{name} forward"]
    if kind == "forward":
        return forward
    both = times[f"{name} both"]
    return both if kind == "forward+backward" else max(both - forward, 1e-6)


def _both(run: Run, inputs: list[Tensor]) -> Callable[[], object]:
    def forward_and_backward() -> object:
        out = run()
        outs = out if isinstance(out, tuple) else (out,)
        return torch.autograd.grad(outs, inputs, [torch.ones_like(x) for x in outs])

    return forward_and_backward


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def draw(*shape: int, dtype: torch.dtype = torch.float32, learns: bool = False) -> Tensor:
    return torch.randn(*shape, device=device(), dtype=dtype, requires_grad=learns)


def unit_heads(
    rows: int, heads: int, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM
) -> Tensor:
    """[rows, heads, D] of unit vectors, drawn in slices so that 100M tokens fit."""
    out = torch.empty(rows, heads, head_dim, device=device(), dtype=dtype)
    for part in out.split(1 << 17):
        part.copy_(F.normalize(draw(*part.shape), dim=-1))
    return out


def every(count: int, length: int) -> Tensor:
    """Cumulative lengths of `count` sequences of equal length."""
    return cumulative(torch.full((count,), length, device=device()))


def one_to_three(chunks: int) -> Tensor:
    """Documents of one to three chunks, `chunks` in all: [n+1]."""
    cu = cumulative(torch.randint(1, 4, (chunks // 2 + 1,), device=device()))
    return torch.cat([cu[cu < chunks], cu.new_tensor([chunks])])


def size(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)
