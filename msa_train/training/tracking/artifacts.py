"""Folders as W&B artifacts: shards -> checkpoint -> export.

The same folder makes the same artifact in every process: that is how W&B sees that an export was
made from the checkpoint which training had logged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import INDEX_FILE, MANIFEST_FILE, TOKENIZER_FOLDER, ShardManifest


def shards_artifact(folder: Path) -> Any:
    """ShardManifest, index (with a checksum of every sample) and tokenizer; no shard is read."""
    folder = folder.resolve()
    manifest = ShardManifest.load(folder)
    facts = {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(manifest.shards),
        "tokenizer": manifest.tokenizer,
        "folder": folder.as_uri(),
    }
    files = [folder / MANIFEST_FILE, folder / INDEX_FILE, *_files(folder / TOKENIZER_FOLDER)]
    return _artifact(f"shards-{folder.parent.name}", "dataset", folder, files, False, facts)


def checkpoint_artifact(folder: Path, run_id: str, copies: bool) -> Any:
    """A whole checkpoint folder; its state.json says the step."""
    facts = {"step": json.loads((folder / "state.json").read_text())["step"]}
    return _artifact(f"checkpoint-{run_id}", "checkpoint", folder, _files(folder), copies, facts)


def export_artifact(folder: Path, run_id: str, copies: bool) -> Any:
    facts = json.loads((folder / "fingerprint.json").read_text())
    return _artifact(f"export-{run_id}", "model", folder, _files(folder), copies, facts)


def _artifact(
    name: str, kind: str, folder: Path, files: Iterable[Path], copies: bool, facts: dict[str, Any]
) -> Any:
    """References carry the digest of the file's content, as copies do."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind, metadata=facts)
    for path in files:
        name_there = str(path.relative_to(folder))
        if copies:
            artifact.add_file(str(path), name=name_there)
        else:
            artifact.add_reference(path.resolve().as_uri(), name=name_there)
    return artifact


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
