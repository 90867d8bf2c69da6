"""Weights under the published names: checking and loading them into the serving module."""

from __future__ import annotations

from torch import Tensor

from msa_train.errors import CheckpointError
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import weight_shapes

# The published code keeps the router loss's temperature (not trained) among the weights.
_IGNORED = {"temperature", "model.temperature"}


def load_published(model: MSADecoder, weights: dict[str, Tensor]) -> MSADecoder:
    """Copy published weights into the model. Raises CheckpointError, naming every bad weight."""
    shapes = weight_shapes(model.config)
    weights = {name: w for name, w in weights.items() if name not in _IGNORED}
    if model.config.tie_embeddings:
        weights.pop("lm_head.weight", None)
    missing = sorted(shapes.keys() - weights.keys())
    unknown = sorted(weights.keys() - shapes.keys())
    wrong = [
        f"{name} is {tuple(w.shape)}, expected {shapes[name]}"
        for name, w in weights.items()
        if name in shapes and tuple(w.shape) != shapes[name]
    ]
    if missing or unknown or wrong:
        raise CheckpointError(
            f"weights do not fit the config: missing {missing[:4]} ({len(missing)} in all), "
            f"unknown {unknown[:4]} ({len(unknown)} in all), of another shape {wrong[:4]}"
        )
    model.load_state_dict(weights)
    return model
