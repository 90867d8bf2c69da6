"""The published config.json <-> ModelConfig (SPEC section 6)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from msa_train.errors import CheckpointError
from msa_train.model import scoring
from msa_train.model.config import RETIRED, ModelConfig, RouterConfig

_LOSSES = {"INFONCE_DECOUPLE": "infonce_decoupled", "INFONCE": "infonce"}
_OURS = "msa_train"  # key of config.json for what the published format has no word for


def from_published(raw: dict[str, Any], behaviour: Literal["training", "serving"]) -> ModelConfig:
    """ModelConfig of a published config.json.

    The published code routes by cosine while training, and while serving only when
    aux_loss_method is exactly INFONCE: `behaviour` says which to reproduce. An export of ours says
    it all under its own key, and `behaviour` does not matter. Raises CheckpointError, naming the
    key, for what is not supported.
    """
    if _OURS in raw:
        ours = dict(raw[_OURS]["model"])
        return ModelConfig(**{**ours, "router": RouterConfig(**ours["router"])})
    _require(raw, "msa_config", "config.json")
    msa = raw["msa_config"]
    method = msa.get("aux_loss_method", "INFONCE_DECOUPLE")
    if method not in _LOSSES:
        raise CheckpointError(
            f"msa_config.aux_loss_method is {method!r}: supported are {', '.join(_LOSSES)}"
        )
    if not msa.get("rewrite_position", True):
        raise CheckpointError(
            "msa_config.rewrite_position is false: only document-wise positions are supported"
        )
    if msa.get("decouple_pooling_mode", "mean") != "mean":
        raise CheckpointError(
            f"msa_config.decouple_pooling_mode is {msa['decouple_pooling_mode']!r}: "
            "only mean pooling is supported"
        )
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        _require(raw, key, "config.json")
    heads = raw["num_attention_heads"]
    return ModelConfig(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads", heads),
        head_dim=raw.get("head_dim", raw["hidden_size"] // heads),
        ffn=raw["intermediate_size"],
        vocab_size=raw["vocab_size"],
        rope_theta=raw.get("rope_theta", 1e6),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        router=RouterConfig(
            layers=msa.get("router_layer_idx", "all"),
            top_k=_top_k(msa),
            chunk_size=msa.get("pooling_kernel_size", 64),
            **scoring.from_published(msa, normalised=behaviour == "training"),
            gate="none",
            temperature=msa.get("infonce_loss_temp", 0.1),
            loss=_LOSSES[method],
            loss_layers="upper_half",
        ),
    )


def to_published(config: ModelConfig) -> dict[str, Any]:
    """config.json of an export: every published key, and the whole truth under our own."""
    router = config.router
    return {
        "architectures": ["MSAForCausalLM"],
        "model_type": "msa",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "sliding_window": False,
        "msa_config": {
            "router_layer_idx": ",".join(map(str, config.router_layers)),
            "top_k_docs": router.top_k,
            "doc_top_k": router.top_k,
            "pooling_kernel_size": router.chunk_size,
            **router.scoring.to_published(),
            "infonce_loss_temp": router.temperature,
            "rewrite_position": True,
        },
        _OURS: {
            "model": _as_stored(config),
            "served_by_published_engine": router.gate == "none" and router.scoring.published,
        },
    }


def _as_stored(config: ModelConfig) -> dict[str, Any]:
    """Every setting, the retired ones where they stood: config.json, and so the fingerprint that
    banks remember, stays what it was for the same model."""
    stored = asdict(config)
    router = stored["router"]
    names = list(router)
    place = names.index("threshold_start") + 1
    stored["router"] = {name: router[name] for name in names[:place]} | RETIRED | router
    return stored


def _top_k(msa: dict[str, Any]) -> int:
    if "top_k_docs" not in msa and "doc_top_k" not in msa:
        raise CheckpointError("msa_config has neither top_k_docs nor doc_top_k")
    return msa.get("top_k_docs", msa.get("doc_top_k"))


def _require(raw: dict[str, Any], key: str, where: str) -> None:
    if key not in raw:
        raise CheckpointError(f"{where} has no {key!r}: is this the config.json of an MSA model?")
