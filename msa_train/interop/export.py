"""Checkpoint -> export: safetensors under the published names, config.json, tokenizer.

An export is what serves: torch, safetensors and a tokenizer read it; no DeepSpeed, no Megatron.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_pipeline import files
from data_pipeline.tokenizer import METADATA_FILE, MODEL_FILE, Tokenizer, load_tokenizer
from msa_train import checkpoint_folders
from msa_train.errors import CheckpointError, failed_writes
from msa_train.interop.backbones.model_card import CARD, trained
from msa_train.interop.published_config import from_published, to_published
from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import published_weights

WEIGHTS, CONFIG, RUN_CONFIG, FINGERPRINT = (
    "model.safetensors", "config.json", "run.yaml", "fingerprint.json",
)  # fmt: skip
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What an export was made of, and what banks will remember of it."""

    checkpoint: Path
    fingerprint: dict[str, str]


def export(source: Path, target: Path, best: bool = False) -> Exported:
    """Export a checkpoint, or a run's newest, to a new folder; best: its best, by training.best.

    Raises CheckpointError when there is no complete checkpoint or the target exists, FileError when
    it cannot be written.
    """
    checkpoint = _best(source) if best else _checkpoint(source)
    if target.exists():
        raise CheckpointError(f"{target} exists: remove it, or give another folder")
    settings = yaml.safe_load((checkpoint / "config.yaml").read_text())
    config = ModelConfig.from_settings(settings["model"])
    shards = [
        load_file(checkpoint / f"weights-tp{rank}.safetensors")
        for rank in range(settings["training"]["tensor_parallel"])
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(target) as folder:
        folder.mkdir()
        weights = {name: w.contiguous() for name, w in published_weights(shards, config)}
        with failed_writes(target):
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        files.replace_file(folder / CONFIG, json.dumps(to_published(config), indent=2) + "\n")
        load_tokenizer(checkpoint / "tokenizer").save(folder)
        shutil.copy(checkpoint / "config.yaml", folder / RUN_CONFIG)
        start = settings["training"]["start_from"]
        if start is not None and (card := Path(start) / CARD).is_file():
            files.replace_file(folder / CARD, trained(card.read_text(), config, checkpoint.name))
        # safetensors makes its file for this user alone.
        (folder / WEIGHTS).chmod(stat.S_IMODE((folder / CONFIG).stat().st_mode))
        fingerprint = seal(folder)
    return Exported(checkpoint, fingerprint)


def seal(folder: Path) -> dict[str, str]:
    """Writes down what a folder with weights, config and tokenizer holds: it is an export now."""
    fingerprint = _fingerprint(folder)
    files.replace_file(folder / FINGERPRINT, json.dumps(fingerprint, indent=2) + "\n")
    return fingerprint


@dataclass(frozen=True)
class Placement:
    """Where a model computes (cpu, cuda:N) and the dtype of its weights there, float32 or bfloat16
    (on CPUs faster with AMX)."""

    device: str = "cpu"
    compute: str = "float32"


ON_CPU = Placement()


@dataclass(frozen=True)
class LoadedModel:
    """An export, ready to serve; fingerprint: what banks remember of it."""

    model: MSADecoder
    tokenizer: Tokenizer
    fingerprint: dict[str, str]


def load_export(folder: Path, placed: Placement = ON_CPU) -> LoadedModel:
    """The model of an export, in evaluation mode.

    Raises CheckpointError where a file is missing, broken, or not what was exported.
    """
    config, fingerprint = check_export(folder)
    model = MSADecoder.empty(config, torch.device(placed.device), COMPUTE[placed.compute])
    with safe_open(folder / WEIGHTS, "pt") as file:
        model.load_published(_OneByOne(file))
    return LoadedModel(model.eval(), load_tokenizer(folder), fingerprint)


class _OneByOne(Mapping[str, torch.Tensor]):
    """The weights of a file, of which one at a time is in memory."""

    def __init__(self, file: safe_open):
        self._file, self._names = file, file.keys()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_export(folder: Path) -> tuple[ModelConfig, dict[str, str]]:
    """Config and fingerprint of an export whose files are those that were exported.

    Raises CheckpointError as load_export.
    """
    try:
        stored = json.loads((folder / FINGERPRINT).read_text())
        config = from_published(json.loads((folder / CONFIG).read_text()), "serving")
        fingerprint = _fingerprint(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no complete export: {error}; give a folder that `msa export` or "
            "`msa import` wrote"
        ) from error
    if changed := [name for name in fingerprint if fingerprint[name] != stored.get(name)]:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed since the export; export again"
        )
    return config, fingerprint


def _checkpoint(source: Path) -> Path:
    """A checkpoint folder as it is, or the newest good one of a run."""
    if (source / checkpoint_folders.SEAL).is_file():
        checkpoint_folders.check(source)
        return source
    found = checkpoint_folders.newest_good(source / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{source} holds no complete checkpoint: give a run's folder, or one of its "
            "checkpoints/step-... (train first: msa train --config ...)"
        )
    return found


def _best(source: Path) -> Path:
    """The best checkpoint of a run."""
    found = checkpoint_folders.best_of(source / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{source} has no best checkpoint: give a run's folder that was trained with "
            "training.best, or leave out --best for the newest good one"
        )
    checkpoint, record = found
    try:
        checkpoint_folders.check(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            f"the best checkpoint cannot be exported: {error}; leave out --best for the newest "
            "good one"
        ) from error
    said = f"{record.get('number')} {record.get('value')}"
    print(f"best checkpoint: {checkpoint}: {said}", file=sys.stderr, flush=True)
    return checkpoint


def _fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of what the states of a memory depend on."""
    tokenizer = [name for name in (MODEL_FILE, METADATA_FILE) if (folder / name).is_file()]
    digests = {}
    for name, parts in {"weights": [WEIGHTS], "config": [CONFIG], "tokenizer": tokenizer}.items():
        digest = hashlib.sha256()
        for part in parts:
            with (folder / part).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digests[name] = digest.hexdigest()
    return digests
