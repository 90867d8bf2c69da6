"""Every weight of a model: published name, shape, initial value, and its tensor-parallel shard.

One map in both directions between the published names (the backbone's own, plus the router's) and
the parameters of the Megatron-core training module, so that a checkpoint, an export and a model
fresh from its seed are the same thing under any number of tensor-parallel ranks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from msa_train.errors import ConfigError
from msa_train.model.architecture import EMBEDDING, FINAL_NORM, HEAD, WeightMap
from msa_train.model.config import ModelConfig

Read = Callable[[str], Tensor]  # published name -> full weight
Part = Literal["router", "reader", "encoder"]
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def layer_weights(config: ModelConfig, layer: int) -> list[WeightMap]:
    """Of one layer, names within it: the backbone's, and in a router layer the router's."""
    found = config.shape.layer_weights()
    if layer not in config.router_layers:
        return found
    if config.router.decouple:
        for side, size in (("q", "router_queries"), ("k", "router_keys")):
            published = {f"self_attn.router_{side}_proj.0.weight": (size, "hidden")}
            found.append(WeightMap(f"self_attention.router_{side}.weight", published, "rows"))
    if config.router.gate != "none" and layer in config.reading_layers:
        for name in ("router_gate", "router_threshold"):
            published = {f"self_attn.{name}": ("one",)}
            found.append(WeightMap(f"self_attention.{name}", published, "whole"))
    return found


def weight_maps(config: ModelConfig) -> Iterator[WeightMap]:
    """Every parameter of the training module, under full names."""
    yield EMBEDDING
    for layer in range(config.layers):
        for each in layer_weights(config, layer):
            published = {f"model.layers.{layer}.{n}": s for n, s in each.published.items()}
            yield WeightMap(f"decoder.layers.{layer}.{each.megatron}", published, each.split)
    yield FINAL_NORM
    if not config.tie_embeddings:
        yield HEAD


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every weight."""
    sizes = config.sizes
    return {
        name: tuple(sizes[size] for size in shape)
        for each in weight_maps(config)
        for name, shape in each.published.items()
    }


def part_of(name: str, config: ModelConfig) -> Part:
    """What a weight, by Megatron's name, belongs to.

    router: its projections and its gate. encoder: what documents' states, and questions' up to the
    last router layer, depend on. reader: everything above.
    """
    if ".router_" in name:
        return "router"
    found = _LAYER.search(name)
    if found is not None:
        return "encoder" if int(found[1]) <= config.last_router_layer else "reader"
    return "encoder" if name.startswith("embedding") else "reader"


def initial_weight(name: str, config: ModelConfig, seed: int) -> Tensor:
    """The weight `name` of a fresh model: depends on the seed and the name alone.

    Tied at the start only: router queries to the router keys (independent ones stay at chance for
    hundreds of steps, SPEC section 7), and the router layers' output to their value projection
    (ModelConfig.copy_start), without which reading from pooled states stays at chance.
    """
    shape = weight_shapes(config)[name]
    if name.endswith("router_gate"):
        return torch.full(shape, config.router.gate_start)
    if name.endswith("router_threshold"):
        return torch.full(shape, config.router.threshold_start)
    if name == "model.norm.weight" and config.tie_embeddings:
        return torch.full(shape, 1 / (config.embedding_std * config.hidden**0.5))
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith("router_q_proj.0.weight"):
        key = initial_weight(name.replace("router_q", "router_k"), config, seed)
        return repeated_heads(key, config.router_key_heads, config.router_heads)
    if config.copy_start and name.endswith("o_proj.weight"):
        layer = int(name.split(".")[2])
        if layer in config.reading_layers:
            value = initial_weight(name.replace("o_proj", "v_proj"), config, seed)
            return (
                config.copy_start
                * repeated_heads(value, config.kv_heads, config.heads).T.contiguous()
            )
    if name == "model.embed_tokens.weight":
        std = config.embedding_std
    else:
        std = config.linear_gain / shape[1] ** 0.5
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * std


def initial_reader(config: ModelConfig, seed: int) -> Read:
    """The weights of a fresh model: the same under any number of ranks."""
    return lambda name: initial_weight(name, config, seed)


def projection_names(layer: int) -> tuple[str, str]:
    """Published names of a layer's router projections, of queries and of keys."""
    name = f"model.layers.{layer}.self_attn.router_{{}}_proj.0.weight"
    return name.format("q"), name.format("k")


def router_from_backbone(name: str, read: Read, config: ModelConfig) -> Tensor:
    """The start of a router projection for a backbone that has none (SPEC section 7): its layer's
    key projection, repeated over each GQA group for the queries.

    Raises ConfigError for a router whose keys have another shape than the backbone's.
    """
    shape = config.kv_heads, config.head_dim
    if (config.router_key_heads, config.router_head_dim) != shape:
        raise ConfigError(
            f"model.router has keys of {config.router_key_heads} heads of "
            f"{config.router_head_dim}, and the backbone {shape[0]} of {shape[1]}: a router of its "
            "own shape cannot start from the backbone's keys; remove key_heads and head_dim, or "
            "start from `msa router start`"
        )
    key = read(re.sub(r"router_[qk]_proj\.0", "k_proj", name))
    if "router_k" in name:
        return key.clone()
    return repeated_heads(key, config.kv_heads, config.router_heads)


def repeated_heads(weight: Tensor, heads: int, times: int) -> Tensor:
    """Rows of key/value heads [heads*D, d], each repeated for its query heads: [times*D, d]."""
    rows = weight.unflatten(0, (heads, -1))
    return rows.repeat_interleave(times // heads, 0).flatten(0, 1)


def megatron_shard(
    each: WeightMap, read: Read, config: ModelConfig, rank: int, size: int
) -> Tensor:
    """Rank `rank` of `size`'s part of a Megatron parameter."""
    full = [read(name) for name in each.published]
    match each.split:
        case "whole":
            return full[0]
        case "columns":
            return full[0].chunk(size, 1)[rank]
        case "grouped":
            heads = (weight.unflatten(0, _by_head(config)) for weight in full)
            return torch.cat(list(heads), 1).chunk(size, 0)[rank].flatten(0, 2)
        case _:  # rows of one weight, or of several
            return torch.cat([weight.chunk(size, 0)[rank] for weight in full])


def resharded(
    each: WeightMap, parts: list[Tensor], config: ModelConfig, rank: int, size: int
) -> Tensor:
    """Rank `rank` of `size`'s part of a Megatron parameter, or of what an optimizer keeps for it,
    from the parts of all ranks of another number."""
    full = dict(zip(each.published, _joined(each, parts, config), strict=True))
    return megatron_shard(each, full.__getitem__, config, rank, size)


def published_weights(
    shards: list[dict[str, Tensor]], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """Published (name, full weight) pairs from the parameters of all tensor-parallel ranks."""
    maps = {each.megatron: each for each in weight_maps(config)}
    for name in shards[0]:
        each, parts = maps[name], [shard[name] for shard in shards]
        yield from zip(each.published, _joined(each, parts, config), strict=True)


def _joined(each: WeightMap, parts: list[Tensor], config: ModelConfig) -> list[Tensor]:
    match each.split:
        case "whole":
            return parts[:1]
        case "columns":
            return [torch.cat(parts, 1)]
        case "grouped":
            heads = torch.cat(parts).unflatten(0, _by_head(config))
            queries = config.heads // config.kv_heads
            return [weight.flatten(0, 2) for weight in heads.split([queries, 1, 1], 1)]
        case _:
            pieces = [part.chunk(len(each.published)) for part in parts]
            return [torch.cat(rows) for rows in zip(*pieces, strict=True)]


def _by_head(config: ModelConfig) -> tuple[int, int, int]:
    """Rows of a projection as [key/value heads, heads of each, head dim]."""
    return config.kv_heads, -1, config.head_dim
