"""Every weight of a model: published name, shape, initial value, and its tensor-parallel shard.

One map in both directions between the published names (Qwen3's, plus the router's) and the
parameters of the Megatron-core training module, so that a checkpoint, an export and a model
fresh from its seed are the same thing under any number of tensor-parallel ranks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from msa_train.model.config import ModelConfig

Read = Callable[[str], Tensor]  # published name -> full weight

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_SAME = {  # Megatron name -> published name, not split
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.qk_norm.q_weight": "self_attn.q_norm.weight",
    "self_attention.qk_norm.k_weight": "self_attn.k_norm.weight",
    "self_attention.router_gate": "self_attn.router_gate",
    "self_attention.router_threshold": "self_attn.router_threshold",
}
_ROWS = {  # split by output rows
    "self_attention.router_q.weight": "self_attn.router_q_proj.0.weight",
    "self_attention.router_k.weight": "self_attn.router_k_proj.0.weight",
}
_COLUMNS = {  # split by input columns
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_FC1, _QKV = "mlp.linear_fc1.weight", "self_attention.linear_qkv.weight"
_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_Q_K_V = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every weight."""
    d, f, c = config.hidden, config.ffn, config
    wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, d)}
    for layer in range(c.layers):
        own = {
            "input_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (wide, d),
            "self_attn.k_proj.weight": (narrow, d),
            "self_attn.v_proj.weight": (narrow, d),
            "self_attn.o_proj.weight": (d, wide),
            "self_attn.q_norm.weight": (c.head_dim,),
            "self_attn.k_norm.weight": (c.head_dim,),
            "post_attention_layernorm.weight": (d,),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
        }
        if layer in c.router_layers:
            if c.router.decouple:
                own["self_attn.router_q_proj.0.weight"] = (wide, d)
                own["self_attn.router_k_proj.0.weight"] = (narrow, d)
            if c.router.gate != "none":
                own["self_attn.router_gate"] = (1,)
                own["self_attn.router_threshold"] = (1,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    shapes["model.norm.weight"] = (d,)
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, d)
    return shapes


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
    if name.endswith("router_q_proj.0.weight"):
        key = initial_weight(name.replace("router_q", "router_k"), config, seed)
        return _repeated(key, config)
    if (
        config.copy_start
        and name.endswith("o_proj.weight")
        and _layer(name) in config.router_layers
    ):
        value = initial_weight(name.replace("o_proj", "v_proj"), config, seed)
        return config.copy_start * _repeated(value, config).T.contiguous()
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


def router_from_backbone(name: str, read: Read, config: ModelConfig) -> Tensor:
    """The start of a router projection for a backbone that has none (SPEC section 7): its layer's
    key projection, repeated over each GQA group for the queries."""
    key = read(re.sub(r"router_[qk]_proj\.0", "k_proj", name))
    return _repeated(key, config) if "router_q" in name else key.clone()


def _repeated(weight: Tensor, config: ModelConfig) -> Tensor:
    """Rows of the key/value heads [G*D, d], each head repeated for its query heads: [H*D, d]."""
    heads = weight.unflatten(0, (config.kv_heads, config.head_dim))
    return heads.repeat_interleave(config.heads // config.kv_heads, 0).flatten(0, 1)


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def megatron_shard(name: str, read: Read, config: ModelConfig, rank: int, size: int) -> Tensor:
    """Rank `rank` of `size`'s part of the Megatron parameter `name`."""

    def part(weight: Tensor, dim: int) -> Tensor:
        return weight.chunk(size, dim)[rank]

    if name in ("embedding.weight", "output.weight"):
        published = "model.embed_tokens.weight" if name[0] == "e" else "lm_head.weight"
        return part(read(published), 0)
    if name == "decoder.final_layernorm.weight":
        return read("model.norm.weight")
    layer, own = _split(name)
    prefix = f"model.layers.{layer}."
    if own in _SAME:
        return read(prefix + _SAME[own])
    if own in _ROWS:
        return part(read(prefix + _ROWS[own]), 0)
    if own in _COLUMNS:
        return part(read(prefix + _COLUMNS[own]), 1)
    if own == _FC1:  # [gate; up] of each rank
        return torch.cat([part(read(prefix + each), 0) for each in _GATE_UP])
    assert own == _QKV, name  # (q..q, k, v) of each key/value head
    q, k, v = (
        read(prefix + each).unflatten(0, (config.kv_heads, -1, config.head_dim)) for each in _Q_K_V
    )
    return part(torch.cat([q, k, v], 1), 0).flatten(0, 2)


def published_weights(
    shards: list[dict[str, Tensor]], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """Published (name, full weight) pairs from the parameters of all tensor-parallel ranks."""
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if name in ("embedding.weight", "output.weight"):
            published = "model.embed_tokens.weight" if name[0] == "e" else "lm_head.weight"
            yield published, torch.cat(parts)
        elif name == "decoder.final_layernorm.weight":
            yield "model.norm.weight", parts[0]
        else:
            layer, own = _split(name)
            for each, weight in _published_layer_weights(own, parts, config):
                yield f"model.layers.{layer}.{each}", weight


def _published_layer_weights(
    own: str, parts: list[Tensor], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    if own in _SAME:
        yield _SAME[own], parts[0]
    elif own in _ROWS:
        yield _ROWS[own], torch.cat(parts)
    elif own in _COLUMNS:
        yield _COLUMNS[own], torch.cat(parts, 1)
    elif own == _FC1:
        halves = [part.chunk(2) for part in parts]
        for i, name in enumerate(_GATE_UP):
            yield name, torch.cat([half[i] for half in halves])
    else:
        assert own == _QKV, own
        heads = torch.cat(parts).unflatten(0, (config.kv_heads, -1, config.head_dim))
        queries = config.heads // config.kv_heads
        for name, weight in zip(_Q_K_V, heads.split([queries, 1, 1], 1), strict=True):
            yield name, weight.flatten(0, 2)


def _split(name: str) -> tuple[str, str]:
    match = _LAYER.fullmatch(name)
    assert match, f"not a weight of the training module: {name}"
    return match[1], match[2]
