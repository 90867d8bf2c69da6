"""Checkpoints: DeepSpeed's state, every rank's own, and weights that need no DeepSpeed to read.

OUTPUT/checkpoints/step-000500/state.json            written last: a folder without it is no
                                                     checkpoint
                              /config.yaml           the resolved settings
                              /tokenizer/
                              /weights-tp0.safetensors   float32, by Megatron name, one per
                                                     tensor-parallel rank
                              /rng-rank0.pt          random state of each rank
                              /...                   DeepSpeed's own files
OUTPUT/checkpoints/latest                            names the newest, replaced by rename
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from data_pipeline.tokenizer import Tokenizer
from msa_train.config import Config, load_config_file, to_plain
from msa_train.errors import CheckpointError
from msa_train.parallel.groups import DeepSpeedGroups
from msa_train.training.engine import Engine

FOLDER, LATEST, STATE = "checkpoints", "latest", "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands. loader: samples consumed; wandb_id: to continue in the same chart."""

    step: int
    loader: dict[str, int]
    wandb_id: str | None
    ranks: int


def save(engine: Engine, config: Config, tokenizer: Tokenizer, state: RunState) -> Path:
    """Write a checkpoint; every rank must call. Nothing points at it before all of it is there."""
    folder, tag = config.path / FOLDER, f"step-{state.step:06d}"
    target = folder / tag
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)  # what an interrupted save left
        target.mkdir(parents=True)
    dist.barrier()
    engine.save(folder, tag)
    torch.save({"cpu": torch.get_rng_state()}, target / f"rng-rank{dist.get_rank()}.pt")
    weights = dict(engine.full_weights())
    if DeepSpeedGroups.get_data_parallel_rank() == 0:
        part = DeepSpeedGroups.get_model_parallel_rank()
        save_file(weights, target / f"weights-tp{part}.safetensors")
    dist.barrier()
    if dist.get_rank() == 0:
        config.save(target / "config.yaml")
        tokenizer.save(target / "tokenizer")
        _replace(target / STATE, json.dumps(asdict(state)))
        _replace(folder / LATEST, tag)
        _forget_old(folder, config.training.keep_checkpoints)
    dist.barrier()
    return target


def find(output: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None. Raises CheckpointError if it is damaged."""
    latest = output / FOLDER / LATEST
    if not latest.exists():
        return None
    target = output / FOLDER / latest.read_text().strip()
    read_state(target)
    return target


def read_state(target: Path) -> RunState:
    try:
        return RunState(**json.loads((target / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{target} is no complete checkpoint ({error}); name an older one in "
            f"{target.parent / LATEST}, or remove the run's checkpoints to start again"
        ) from error


def load(engine: Engine, config: Config, target: Path) -> RunState:
    """Continue from a checkpoint; every rank must call."""
    state = read_state(target)
    _check_same(config, target)
    if state.ranks != dist.get_world_size():
        raise CheckpointError(
            f"{target} was written by {state.ranks} ranks, {dist.get_world_size()} were started: "
            "start as many (another number needs a universal checkpoint)"
        )
    engine.load(target.parent, target.name)
    rng = torch.load(target / f"rng-rank{dist.get_rank()}.pt", weights_only=True)
    torch.set_rng_state(rng["cpu"])
    return state


def _check_same(config: Config, target: Path) -> None:
    """What the optimizer's state and the data order depend on must not have changed."""
    old, new = to_plain(load_config_file(target / "config.yaml")), to_plain(config)
    for section in ("model", "data", "seed"):
        if (where := _difference(old[section], new[section], section)) is not None:
            raise CheckpointError(
                f"{target} was trained with another {where}: set it back, or start a new run "
                "under another output"
            )
    for key in ("zero_stage", "tensor_parallel", "precision", "micro_batches"):
        if old["training"][key] != new["training"][key]:
            raise CheckpointError(
                f"{target} was trained with training.{key} {old['training'][key]}, not "
                f"{new['training'][key]}: set it back"
            )


def _difference(old: Any, new: Any, where: str) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if (found := _difference(old.get(key), new.get(key), f"{where}.{key}")) is not None:
                return found
        return None
    return None if old == new else f"{where} ({old!r}, now {new!r})"


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the old one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _forget_old(folder: Path, keep: int) -> None:
    complete = sorted(path.parent for path in folder.glob(f"step-*/{STATE}"))
    for old in complete[:-keep]:
        shutil.rmtree(old)
