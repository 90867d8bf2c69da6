"""The published config.json <-> ModelConfig (SPEC section 6)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from msa_train.errors import CheckpointError
from msa_train.model import scoring
from msa_train.model.architecture import GEOMETRY, read_geometry, whole_geometry
from msa_train.model.config import RETIRED, ModelConfig, RouterConfig

_LOSSES = {"INFONCE_DECOUPLE": "infonce_decoupled", "INFONCE": "infonce"}
_LATER = ("reads", "key_heads", "head_dim")  # settings that models of earlier versions do not have
_OURS = "msa_train"  # key of config.json for what the published format has no word for


def from_published(raw: dict[str, Any], behaviour: Literal["training", "serving"]) -> ModelConfig:
    """ModelConfig of a published config.json.

    The published code routes by cosine while training, and while serving only when
    aux_loss_method is exactly INFONCE: `behaviour` says which to reproduce. An export of ours says
    it all under its own key, and `behaviour` does not matter. Raises CheckpointError, naming the
    key, for what is not supported.
    """
    if _OURS in raw:
        config = ModelConfig.from_settings(raw[_OURS]["model"])
        for name, value in read_geometry(raw).items():  # refuses what was added to it
            if value != getattr(config, name):
                raise CheckpointError(
                    f"config.json says {name} {value}, but under {_OURS!r} "
                    f"{getattr(config, name)}: export again"
                )
        return config
    if "msa_config" not in raw:
        raise CheckpointError(
            "config.json has no 'msa_config': is this the config.json of an MSA model?"
        )
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
    return ModelConfig(
        **whole_geometry(raw),
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
        **{key: getattr(config, field) for key, field in GEOMETRY.items()},
        **_rotation(config),
        "hidden_act": "silu",
        "attention_bias": config.shape.qkv_bias,
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
            "served_by_published_engine": (
                config.architecture == "qwen3"
                and config.rope_scaling is None
                and router.gate == "none"
                and router.scoring.published
                and router.key_heads is None
                and router.head_dim is None
                and config.reading_layers == config.router_layers
                and config.answers == "protocol"
            ),
        },
    }


def _rotation(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {} if scaling is None else {"rope_scaling": scaling.to_published()}


def _as_stored(config: ModelConfig) -> dict[str, Any]:
    """Every setting as ever: the retired ones where they stood, no architecture where there was
    but one, no scaling of positions where there is none. The same model then has the same
    config.json, and the fingerprint that banks know."""
    stored = asdict(config)
    if config.architecture == "qwen3":
        del stored["architecture"]
    if config.rope_scaling is None:
        del stored["rope_scaling"]
    if config.answers == "protocol":
        del stored["answers"]
    router = stored["router"]
    for name in _LATER:
        if router[name] == getattr(RouterConfig, name):
            del router[name]
    names = list(router)
    place = names.index("threshold_start") + 1
    stored["router"] = {name: router[name] for name in names[:place]} | RETIRED | router
    return stored


def _top_k(msa: dict[str, Any]) -> int:
    if "top_k_docs" not in msa and "doc_top_k" not in msa:
        raise CheckpointError("msa_config has neither top_k_docs nor doc_top_k")
    return msa.get("top_k_docs", msa.get("doc_top_k"))
