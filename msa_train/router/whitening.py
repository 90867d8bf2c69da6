"""A router that works before it is trained: its projections whiten chunk means (SPEC section 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from msa_train.model.config import ModelConfig
from msa_train.model.weights import projection_names, repeated_heads

_LEAST = 1e-6  # of the largest variance: smaller ones are noise


def whitening(means: Tensor) -> Tensor:
    """[d, d] W with W M W^T = 1, M the UNCENTRED second moment of means [C, d], float32.

    Row i scales the i-th principal direction, the largest first, to mean square one. A few huge
    directions that all text shares would drown the others in a cosine.
    """
    wide = means.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide / len(wide))
    values, vectors = values.flip(0), vectors.flip(1)
    return ((vectors * values.clamp(min=float(values[0]) * _LEAST) ** -0.5).T).float()


def started(config: ModelConfig, means: dict[int, Tensor]) -> dict[str, Tensor]:
    """Router weights by published name: queries and keys of a layer both start as its whitening.

    means: router layer -> [C, d]. A router of fewer than d dimensions keeps the principal ones,
    dealt out to its heads in turn, so that every head has large and small ones alike.
    """
    found = {}
    heads, width = config.router_key_heads, config.router_head_dim
    kept = min(heads * width, config.hidden)
    for layer, rows in means.items():
        weight = torch.zeros(heads * width, config.hidden)
        direction = torch.arange(kept)
        weight[direction % heads * width + direction // heads] = whitening(rows)[:kept]
        queries, keys = projection_names(layer)
        found[keys] = weight
        found[queries] = repeated_heads(weight, heads, config.router_heads)
    return found
