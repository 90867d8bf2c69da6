"""Settings changed since a checkpoint: every key is refused by name, or applied and shown.

A key that stands in none of the tables below is refused: what a run is made of must not change
unseen under its old weights, and a new setting is refused until somebody has thought about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from msa_train.config import Config, to_plain
from msa_train.errors import CheckpointError
from msa_train.stages import trained_alone

# What every later step does otherwise, or what changes no weight.
APPLIED = {
    "output", "data.workers", "evaluation", "training.device", "training.recompute",
    "training.gradient_cache_tokens",
    "training.betas", "training.weight_decay", "training.clip", "training.log_every",
    "training.checkpoint_every", "training.keep_checkpoints", "training.held_out_every",
    "training.held_out_samples", "training.damaged_samples", "training.shards",
    "training.cache_gb", "training.skipped_steps_limit", "training.timeout_s", "training.wandb",
}  # fmt: skip
# Of a stage, as long as it has steps before it.
APPLIED_TO_STAGES = {
    "lr", "final_lr", "warmup_steps", "lm_weight", "router_weight", "queue_documents", "trains",
}  # fmt: skip
_MISSING = "not given"


def changes(old: Config, new: Config, target: Path, ends: Sequence[bool]) -> list[str]:
    """What is otherwise in `new` than in `old`, the settings of the checkpoint `target`.

    ends: of each stage of `new`, whether it is over at the checkpoint. Raises CheckpointError,
    naming every changed key that the run cannot honour.
    """
    _check_optimizer(old, new, target)
    changed = dict(_differences(to_plain(old), to_plain(new)))
    refused = [_told(key, *values) for key, values in changed.items() if not _applies(key, ends)]
    if refused:
        raise CheckpointError(
            f"{target} was trained with another {', '.join(refused)}: set it back, or start a new "
            "run under another output"
        )
    return [_told(key, *values) for key, values in changed.items()]


def stages_over(steps: Sequence[int], step: int) -> list[bool]:
    """Of each stage, whether a run that has done `step` steps is through. steps: of each stage."""
    return [end <= step for end in accumulate(steps)]


def _applies(key: str, ends: Sequence[bool]) -> bool:
    """Whether a change of a key, by its dotted name, is honoured from the checkpoint on."""
    if stage := re.fullmatch(r"stages\[(\d+)\]\.(\w+)", key):
        place, name = int(stage[1]), stage[2]
        if place >= len(ends):
            return False
        return name == "name" or (name in APPLIED_TO_STAGES and not ends[place])
    parts = key.split(".")
    return any(".".join(parts[:count]) in APPLIED for count in range(1, len(parts) + 1))


def _check_optimizer(old: Config, new: Config, target: Path) -> None:
    """The optimizer's state is divided by what the stages train."""
    trains = [{stage.trains for stage in each.stages} for each in (old, new)]
    if len({(trained_alone(each), "reader" in each) for each in trains}) > 1:
        was, now = (", ".join(sorted(each)) for each in trains)
        raise CheckpointError(
            f"{target} was trained with stages[].trains {was}, not {now}, and its optimizer's "
            "state is divided accordingly: set them back, or start a new run under another output"
        )


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, (old, new)) of every leaf that differs; stages are compared one by one."""
    if where == "stages":
        old, new = ({f"[{i}]": stage for i, stage in enumerate(each)} for each in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            below = f"{where}{'.' * bool(where and where != 'stages')}{key}"
            yield from _differences(old.get(key, _MISSING), new.get(key, _MISSING), below)
    elif old != new:
        yield where, (old, new)


def _told(key: str, old: Any, new: Any) -> str:
    return f"{key} ({old}, now {new})"
