"""The shape of a backbone in one place: what its layers have, its weights, its config.json.

Decoder, training module, weights and readers of config.json ask the Architecture here and know no
model family by name. All are pre-norm decoders with rotary positions, grouped heads and SwiGLU
(SPEC, "Symbols"); a further family is one entry of ARCHITECTURES (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msa_train.errors import CheckpointError, ConfigError
from msa_train.model.rope import RopeScaling

# How a Megatron parameter holds published weights, and what tensor parallelism makes of them:
# whole on every rank; split by rows or columns; stacked: rows of each, one after another;
# grouped: the query heads of a key/value head, its key and its value, head after head.
Split = Literal["whole", "rows", "columns", "stacked", "grouped"]


@dataclass(frozen=True)
class WeightMap:
    """A parameter of the training module, and the published weights in it.

    published: name -> sizes, by the names of ModelConfig.sizes.
    """

    megatron: str
    published: Mapping[str, tuple[str, ...]]
    split: Split


@dataclass(frozen=True)
class Architecture:
    """A family of backbones; the sizes of one are in ModelConfig.

    name: `model_type` of its config.json. qk_norm: RMS norm of each query and key head before it is
    rotated. qkv_bias: the projections to q, k and v have biases. defaults: fields of ModelConfig
    where config.json may leave a key out. ignored: its own keys that change no number.
    """

    name: str
    qk_norm: bool
    qkv_bias: bool
    defaults: Mapping[str, Any]
    ignored: frozenset[str] = frozenset()

    def layer_weights(self) -> list[WeightMap]:
        """Of every layer, names within it; a router's come on top (weights.py)."""
        found = [
            WeightMap("input_layernorm.weight", {"input_layernorm.weight": ("hidden",)}, "whole"),
            WeightMap("self_attention.linear_qkv.weight", _qkv("weight", "hidden"), "grouped"),
            WeightMap(
                "self_attention.linear_proj.weight",
                {"self_attn.o_proj.weight": ("hidden", "queries")},
                "columns",
            ),
            WeightMap(
                "pre_mlp_layernorm.weight",
                {"post_attention_layernorm.weight": ("hidden",)},
                "whole",
            ),
            WeightMap(
                "mlp.linear_fc1.weight",
                {f"mlp.{name}_proj.weight": ("ffn", "hidden") for name in ("gate", "up")},
                "stacked",
            ),
            WeightMap(
                "mlp.linear_fc2.weight", {"mlp.down_proj.weight": ("hidden", "ffn")}, "columns"
            ),
        ]
        if self.qkv_bias:
            found.append(WeightMap("self_attention.linear_qkv.bias", _qkv("bias"), "grouped"))
        if self.qk_norm:
            found += [
                WeightMap(
                    f"self_attention.qk_norm.{name}_weight",
                    {f"self_attn.{name}_norm.weight": ("head_dim",)},
                    "whole",
                )
                for name in ("q", "k")
            ]
        return found


def _qkv(kind: str, *inputs: str) -> dict[str, tuple[str, ...]]:
    rows = {"q": "queries", "k": "keys", "v": "keys"}
    return {f"self_attn.{name}_proj.{kind}": (size, *inputs) for name, size in rows.items()}


# Outside the layers; a tied head has no weight of its own.
EMBEDDING = WeightMap(
    "embedding.weight", {"model.embed_tokens.weight": ("vocab_size", "hidden")}, "rows"
)
FINAL_NORM = WeightMap(
    "decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}, "whole"
)
HEAD = WeightMap("output.weight", {"lm_head.weight": ("vocab_size", "hidden")}, "rows")

ARCHITECTURES: dict[str, Architecture] = {
    "qwen3": Architecture(
        "qwen3", qk_norm=True, qkv_bias=False, defaults={"rope_theta": 1e6, "norm_eps": 1e-6}
    ),
    "llama": Architecture(  # Llama 3, SmolLM2
        "llama", qk_norm=False, qkv_bias=False, defaults={"rope_theta": 1e4, "norm_eps": 1e-6}
    ),
    "qwen2": Architecture(  # Qwen2.5
        "qwen2", qk_norm=False, qkv_bias=True, defaults={"rope_theta": 1e4, "norm_eps": 1e-6}
    ),
}

# Key of config.json -> field of ModelConfig.
GEOMETRY = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
_REQUIRED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
)  # fmt: skip

# Keys whose other values would change what is computed. `attention_bias` is the family's own.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (False,),
    "attention_dropout": (0,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "pretraining_tp": (1,),
    "use_mrope": (False,),
    "is_encoder_decoder": (False,),
}
_ROPE = ("rope_scaling", "rope_parameters")  # the older name, and the newer
# Keys that change no number of the model.
_HARMLESS = frozenset(
    {
        "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_window_layers",
        "max_position_embeddings", "auto_map", "_name_or_path", "_attn_implementation",
        "transformers.js_config", "is_llama_config", "output_attentions", "output_hidden_states",
        "return_dict", "msa_config", "msa_train",
    }
)  # fmt: skip


def read_geometry(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelConfig that a config.json gives, the architecture among them; no defaults.

    Raises CheckpointError, naming the key, for one that is unknown or asks for what is not
    computed: it would load, and be computed wrongly.
    """
    architecture = architecture_of(raw)
    fixed = {**_SUPPORTED, "attention_bias": (architecture.qkv_bias,)}
    if raw.get("use_sliding_window") is not False:  # else its size says nothing
        fixed["sliding_window"] = (None, False)
    known = GEOMETRY.keys() | _HARMLESS | architecture.ignored | {"sliding_window", *_ROPE}
    for key, value in raw.items():
        if key in fixed:
            if value not in fixed[key]:
                allowed = " or ".join(map(repr, fixed[key]))
                raise CheckpointError(
                    f"config.json has {key} {value!r}: with {architecture.name} only {allowed} is "
                    "supported"
                )
        elif key == "layer_types":
            if value is not None and set(value) != {"full_attention"}:
                raise CheckpointError(
                    f"config.json has {key} {sorted(set(value))}: only full_attention is supported"
                )
        elif key not in known:
            raise CheckpointError(
                f"config.json has the unknown key {key!r} ({value!r}), which may change what is "
                "computed: remove it if it does not"
            )
    found = {field: raw[key] for key, field in GEOMETRY.items() if key in raw}
    rotation = raw.get("rope_parameters") or {}
    if "rope_theta" in rotation:
        found.setdefault("rope_theta", rotation["rope_theta"])
    return {
        "architecture": architecture.name, "rope_scaling": _rope_scaling(raw), **found
    }  # fmt: skip


def _rope_scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    for key in _ROPE:
        try:
            if raw.get(key) and (
                found := RopeScaling.from_published(raw[key], raw.get("max_position_embeddings"))
            ):
                return found
        except ConfigError as error:
            raise CheckpointError(f"config.json has {key} {raw[key]}: {error}") from error
    return None


def whole_geometry(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same with defaults for what a config.json may leave out: all but the main sizes."""
    for key in _REQUIRED:
        if key not in raw:
            raise CheckpointError(
                f"config.json has no {key!r}: is this the config.json of an MSA model?"
            )
        if not isinstance(raw[key], int) or raw[key] < 1:
            raise CheckpointError(
                f"config.json has {key} {raw[key]!r}: it should be a number of 1 up"
            )
    heads = raw["num_attention_heads"]
    defaults = {
        "kv_heads": heads,
        "head_dim": raw["hidden_size"] // heads,
        "tie_embeddings": False,
    }
    return defaults | dict(architecture_of(raw).defaults) | read_geometry(raw)


def architecture_of(raw: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json; an MSA model of the publication is a Qwen3.

    Raises CheckpointError for a family that is not known here.
    """
    name = raw.get("model_type", "msa")
    if name == "msa":
        name = raw.get("msa_train", {}).get("model", {}).get("architecture", "qwen3")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json has model_type {name!r}: supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
