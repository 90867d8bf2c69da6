"""Settings changed since a checkpoint: every key is refused by name, or applied and shown.

A key that stands in none of the tables below is refused: what a run is made of must not change
unseen under its old weights, and a new setting is refused until somebody has thought about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.settings import NOT_GIVEN, differences
from msa_train.config import Config, to_plain
from msa_train.errors import CheckpointError
from msa_train.stages import Stage, trained_alone

# What every later step does otherwise, or what changes no weight.
APPLIED = {
    "output", "data.workers", "evaluation", "training.device", "training.recompute",
    "training.gradient_cache_tokens",
    "training.betas", "training.weight_decay", "training.clip", "training.log_every",
    "training.checkpoint_every", "training.keep_checkpoints", "training.async_save",
    "training.held_out_every", "training.best",
    "training.held_out_samples", "training.damaged_samples", "training.shards",
    "training.zero_stage", "training.tensor_parallel", "training.sequence_parallel",
    "training.document_parallel", "training.pooled_states",
    "training.deepspeed",
    "training.cache_gb", "training.skipped_steps_limit", "training.loss_spike",
    "training.timeout_s", "training.wandb",
}  # fmt: skip
# Of a stage, as long as it has steps before it.
APPLIED_TO_STAGES = {
    "lr", "final_lr", "warmup_steps", "lm_weight", "router_weight", "queue_documents", "trains",
}  # fmt: skip
_LENGTH = r"\.(?:steps|tokens|epochs)"
_HOW_TO_EXTEND = (
    "; a run is made longer by more steps (or tokens) of the stage it is in, or epochs and steps "
    "alike where it reads its samples several times, and by further stages"
)


@dataclass(frozen=True)
class Progress:
    """Where the stages stand at a checkpoint.

    begun, over: of each stage of the settings as they are now. could_grow: of each stage of before,
    whether none after it had begun. may_end: whether it may end where it does now, too.
    """

    begun: Sequence[bool]
    over: Sequence[bool]
    could_grow: Sequence[bool]
    may_end: Sequence[bool]

    @classmethod
    def at(cls, step: int, steps: Sequence[int], before: Sequence[int]) -> Progress:
        """After `step` steps; steps, before: of each stage, now and as they were."""
        begun = [end - count < step for count, end in zip(steps, accumulate(steps), strict=True)]
        over = [end <= step for end in accumulate(steps)]
        could_grow = [step <= end for end in accumulate(before)]
        pairs = zip(could_grow, accumulate(steps), strict=False)
        return cls(begun, over, could_grow, [could and step <= end for could, end in pairs])


def changes(old: Config, new: Config, target: Path, progress: Progress) -> list[str]:
    """What is otherwise in `new` than in `old`, the settings of the checkpoint `target`.

    Raises CheckpointError, naming every changed key that the run cannot honour.
    """
    _check_optimizer(old, new, target)
    changed = dict(differences(to_plain(old), to_plain(new)))
    grown = _grown(old, new, progress) | _drawn_anew(old, new, progress, changed)
    refused = {k: v for k, v in changed.items() if k not in grown and not _applies(k, progress)}
    if refused:
        what = ", ".join(_told(key, *values) for key, values in refused.items())
        length = any(re.fullmatch(rf"stages\[\d+\]({_LENGTH})?", key) for key in refused)
        raise CheckpointError(
            f"{target} was trained with another {what}: set it back, or start a new run under "
            f"another output{_HOW_TO_EXTEND if length else ''}"
        )
    return [_told(key, *values) for key, values in changed.items()]


def _grown(old: Config, new: Config, progress: Progress) -> set[str]:
    """Keys whose change makes the run longer: a stage that had no other after it, or a further
    stage."""
    found = {f"stages[{place}]" for place in range(len(old.stages), len(new.stages))}
    stages = zip(old.stages, new.stages, progress.could_grow, progress.begun, strict=False)
    for place, (was, now, could, begun) in enumerate(stages):
        if could and _longer(was, now, begun):
            found |= {f"stages[{place}].{key}" for key in ("steps", "tokens", "epochs")}
    return found


def _drawn_anew(old: Config, new: Config, progress: Progress, changed: Iterable[str]) -> set[str]:
    """Keys of stages that draw from what others have, and had not begun: they drew nothing yet."""
    stages = enumerate(zip(old.stages, new.stages, strict=False))
    places = [i for i, (was, now) in stages if was.draws_from and now.draws_from]
    names = "draws_from", "steps", "data.weights"
    free = [f"stages[{i}].{name}" for i in places if not progress.begun[i] for name in names]
    return {key for key in changed if key.startswith(tuple(free))}


def _longer(was: Stage, now: Stage, begun: bool) -> bool:
    """Whether a stage reads what it read and then more: further samples, or all once more.

    One that reads its samples several times cannot have further ones among them once it has begun.
    """
    if (was.steps is None) != (now.steps is None):
        return False
    had, has = ((each.steps or each.tokens) for each in (was, now))
    if had * now.epochs == has * was.epochs:
        return now.epochs > was.epochs
    return has > had and now.epochs == was.epochs and (now.epochs == 1 or not begun)


def _applies(key: str, progress: Progress) -> bool:
    """Whether a change of a key, by its dotted name, is honoured from the checkpoint on."""
    if stage := re.fullmatch(r"stages\[(\d+)\]\.(\w+)", key):
        place, name = int(stage[1]), stage[2]
        if place >= len(progress.over):
            return False
        if name == "stop_after":
            return place < len(progress.may_end) and progress.may_end[place]
        return name == "name" or (name in APPLIED_TO_STAGES and not progress.over[place])
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


def _told(key: str, old: Any, new: Any) -> str:
    if old == NOT_GIVEN and isinstance(new, dict) and key.startswith("stages["):
        return f"{key} ({old}, now {new.get('name')})"
    return f"{key} ({old}, now {new})"
