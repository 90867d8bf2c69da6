"""Models of any geometry with random weights, drawn where they compute: in seconds, not minutes."""

from __future__ import annotations

import torch
from torch import Tensor

from msa_train.model.config import ModelConfig
from msa_train.model.decoder import MSADecoder
from msa_train.model.weights import Read, weight_shapes


def random_reader(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Read:
    """A weight of a published name, drawn on `device`: norms are 1, matrices keep lengths."""
    shapes = weight_shapes(config)

    def read(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=device, dtype=dtype)
        drawn = torch.randn(shape, device=device, dtype=dtype)
        return drawn * (shape[-1] ** -0.5 if len(shape) == 2 else 0.02)

    return read


@torch.no_grad()
def random_decoder(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> MSADecoder:
    """In evaluation mode; weights are made in `dtype` on `device` and were nowhere else."""
    read, model = random_reader(config, device, dtype), MSADecoder.empty(config, device, dtype)
    for name, weight in model.named_parameters():
        weight.copy_(read(name))
    return model.eval().requires_grad_(False)
