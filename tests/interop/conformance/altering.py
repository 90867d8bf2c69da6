"""Changes to the files of a case."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def alter(path: Path, name: str) -> None:
    """Add 1 to a tensor of whole numbers, 0.01 to any other."""
    tensors = load_file(path)
    tensors[name] = tensors[name] + (0.01 if tensors[name].is_floating_point() else 1)
    save_file(tensors, path)


def change_msa_config(case: Path, **entries) -> None:
    meta = json.loads((case / "meta.json").read_text())
    meta["config"]["msa_config"] |= entries
    (case / "meta.json").write_text(json.dumps(meta))
