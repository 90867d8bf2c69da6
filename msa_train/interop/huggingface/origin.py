"""The export that a model was loaded from, and the export that it is saved as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from data_pipeline import files
from data_pipeline.protocol import IM_END
from data_pipeline.tokenizer import SETTINGS_FILE, Tokenizer, load_tokenizer
from msa_train.errors import CheckpointError
from msa_train.interop.backbones.backbone import FORMS
from msa_train.interop.backbones.weights_file import write_weights
from msa_train.interop.export import FINGERPRINT, WEIGHTS, check_export, seal
from msa_train.model.config import ModelConfig
from msa_train.model.weights import weight_shapes

_GENERATION = "generation_config.json"
_MADE = (WEIGHTS, FINGERPRINT, _GENERATION)  # not copied


@dataclass(frozen=True)
class Origin:
    """An export as it was opened. fingerprint: what banks know of it."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    fingerprint: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> Origin:
        """Raises CheckpointError for a folder that is no whole export, saying what changed."""
        try:
            config, fingerprint = check_export(folder)
        except CheckpointError as error:
            if "tokenizer changed" not in str(error):
                raise
            raise CheckpointError(
                f"{error} (a tokenizer's save_pretrained writes other bytes: the model's writes "
                "the tokenizer as well, as it was)"
            ) from error
        return cls(folder, config, load_tokenizer(folder), fingerprint)

    @property
    def end_tokens(self) -> list[int]:
        """Ids after which a backbone has ended: the protocol's, and its tokenizer's own."""
        ends = self.tokenizer.control_ids(IM_END)
        found = set(ends) if len(ends) == 1 else set()
        path = self.folder / SETTINGS_FILE
        named = json.loads(path.read_text()).get("eos_token") if path.is_file() else None
        text = named["content"] if isinstance(named, dict) else named
        special = self.tokenizer.special
        return sorted(found | {i for i in special if self.tokenizer.decode([i]) == text})

    def save(self, target: Path, weights: Mapping[str, Tensor], generation: str) -> None:
        """Write an export with these weights, everything else as in this one.

        generation: text of generation_config.json. Where the weights are the origin's, in whatever
        dtype they are computed, their file is, too, and banks still open. Raises CheckpointError
        for a target that holds something, for weights that are not of this config, and where the
        origin was replaced.
        """
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{target} exists: remove it, or give another folder")
        weights = self._checked(weights)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(target) as folder:
                folder.mkdir()
                for path in self.folder.iterdir():
                    if path.is_file() and path.name not in _MADE:
                        shutil.copy(path, folder)
                self._write(folder / WEIGHTS, weights)
                files.replace_file(folder / _GENERATION, generation)
                self._check_same(seal(folder))
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error}") from error

    def _checked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the CPU, in the order of the config. Raises CheckpointError for others."""
        shapes = weight_shapes(self.config)
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        wrong = {name for name, _ in shapes.items() ^ found.items()}
        if wrong:
            raise CheckpointError(
                f"{min(wrong)} is missing, unknown or of another shape ({len(wrong)} weights in "
                "all): these are not the weights of this export's config; merge adapters first"
            )
        if other := {weight.dtype for weight in weights.values()} - set(FORMS.values()):
            raise CheckpointError(
                f"weights are in {other.pop()}: cast the model to one of {tuple(FORMS.values())}"
            )
        return {name: weights[name].detach().cpu() for name in shapes}

    def _write(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        if _holds(self.folder / WEIGHTS, weights):
            shutil.copy(self.folder / WEIGHTS, path)
        else:
            planned = {name: (w.dtype, tuple(w.shape)) for name, w in weights.items()}
            write_weights(path, planned, weights.items())

    def _check_same(self, written: Mapping[str, str]) -> None:
        for name in ("config", "tokenizer"):
            if written[name] != self.fingerprint[name]:
                raise CheckpointError(
                    f"{self.folder} is another export by now, its {name} changed: open it again"
                )


def _holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a file's weights, in the dtype that they are computed in."""
    with safe_open(path, "pt") as stored:
        return all(
            torch.equal(stored.get_tensor(name).to(weight.dtype), weight)
            for name, weight in weights.items()
        )
