"""The weights a run begins with: random, or those of an export or of a converted backbone."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa_train.config import Config
from msa_train.errors import CheckpointError
from msa_train.model.architecture import GEOMETRY, read_geometry
from msa_train.model.weights import (
    Read,
    initial_reader,
    initial_weight,
    router_from_backbone,
    weight_shapes,
)

# What the weights' shapes cannot tell, and would be computed wrongly.
_COMPARED = (
    "architecture", "heads", "rope_theta", "rope_scaling", "norm_eps", "tie_embeddings",
)  # fmt: skip


def starting_weights(config: Config) -> Read:
    """Published name -> weight, for every weight of the model.

    A router that the starting point lacks begins as its layer's key projection (SPEC section 7), a
    gate as in the settings. Raises CheckpointError when the starting point is of another model.
    """
    model, seed = config.model, config.seed
    if config.training.start_from is None:
        return initial_reader(model, seed)
    folder = Path(config.training.start_from)
    check_start(config)
    stored = _StoredWeights(folder)
    stored.check(weight_shapes(model))

    def read(name: str) -> Tensor:
        if name in stored:
            return stored[name].float()
        if name.endswith(("router_gate", "router_threshold")):
            return initial_weight(name, model, seed)
        return router_from_backbone(name, read, model)

    return read


def check_start(config: Config) -> None:
    """Raises CheckpointError where training.start_from is no folder of such a model."""
    if config.training.start_from is None:
        return
    folder, model = Path(config.training.start_from), config.model
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"training.start_from is {folder}, which has no readable config.json ({error}): "
            "give an export, or a backbone's folder"
        ) from error
    keys = {field: key for key, field in GEOMETRY.items()}
    keys |= {"architecture": "model_type", "rope_scaling": "rope_scaling"}
    try:
        found = read_geometry(raw)
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from is {folder}, whose {error}") from error
    for ours in _COMPARED:
        if ours in found and found[ours] != getattr(model, ours):
            raise CheckpointError(
                f"model.{ours} is {getattr(model, ours)}, but {folder}/config.json says "
                f"{keys[ours]} {found[ours]}: set model.{ours} to that"
            )


class _StoredWeights:
    """Weights of a folder's safetensors files by name, read when asked for."""

    def __init__(self, folder: Path):
        self._folder, self._files = folder, {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
            self._files |= dict.fromkeys(file.keys(), file)
        if not self._files:
            raise CheckpointError(
                f"training.start_from is {folder}, which holds no *.safetensors: give an export"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError for what is missing, not wanted, or of another shape."""
        for name, shape in shapes.items():
            if name not in self:
                if ".router_" not in name:
                    raise CheckpointError(f"{self._folder} has no weight {name}: set model.* to it")
                continue
            found = tuple(self._files[name].get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{name} has shape {list(found)} in {self._folder}, {list(shape)} by model.*: "
                    "set model.* to the starting point's geometry"
                )
        extra = [n for n in self._files if n not in shapes and n != "lm_head.weight"]
        if extra:
            raise CheckpointError(
                f"{self._folder} has {len(extra)} weights that model.* has not, such as "
                f"{extra[0]}: set model.layers and model.router to the starting point's"
            )
