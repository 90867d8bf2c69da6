"""Settings of a model: geometry and router. They travel in every export, checkpoint and bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal, get_args

from msa_train.errors import ConfigError
from msa_train.model.architecture import ARCHITECTURES, Architecture
from msa_train.model.rope import RopeScaling
from msa_train.model.scoring import Scoring, scoring_of

Answers = Literal["protocol", "chat"]
GateKind = Literal["none", "threshold"]
Recompute = Literal["none", "attention", "layer"]  # what of a layer training does not keep

# Settings that are gone, and what switched them off: older YAML, checkpoints and exports have them.
RETIRED = {"gate_growth": False, "gate_documents": 128}


@dataclass(frozen=True)
class RouterConfig:
    """The memory side of a model (SPEC sections 2 and 3).

    layers: "upper_half", "all", or layer numbers such as "2,3".
    reads: router layers whose contexts attend to what was found, in the same words; "none": they
      only vote for documents, and the backbone computes what it did without a memory. Layers
      beyond `layers` are left out of "all" and "upper_half".
    key_heads, head_dim: shape of the router's keys (null: the backbone's own). With a number of
      heads of its own, queries have as many (SPEC section 8).
    top_k: documents selected per context and layer (K).
    chunk_size: document tokens per pooled key (P).
    decouple: own router projections; false: q and pooled k route.
    similarity: cosine normalises both sides; dot is serving as published.
    gate: what is added to the attention logits of a selected chunk of score s_c:
      none (nothing, as published), or
      threshold: g (s_c - theta), which can say "nothing relevant here"; sharpness g and threshold
      theta are learned per layer.
    gate_start, threshold_start: initial g and theta; theta below what good chunks score, so that
      the few selected chunks are not drowned by the context's own tokens.
    temperature: tau of the router loss, clamped to 0.001..0.5.
    loss: infonce_decoupled (each positive against the negatives only) or infonce.
    loss_layers: router layers that take the loss; published: upper_half.
    """

    layers: str = "upper_half"
    top_k: int = 16
    chunk_size: int = 64
    decouple: bool = True
    similarity: Literal["cosine", "dot"] = "cosine"
    head_reduce: Literal["mean", "max"] = "mean"
    query_reduce: Literal["max", "mean", "last", "pooled"] = "max"
    chunk_reduce: Literal["max", "mean"] = "max"
    gate: GateKind = "threshold"
    gate_start: float = 20.0
    threshold_start: float = 0.6
    temperature: float = 0.1
    loss: Literal["infonce_decoupled", "infonce"] = "infonce_decoupled"
    loss_layers: Literal["all", "upper_half"] = "all"
    reads: str = "all"
    key_heads: int | None = None
    head_dim: int | None = None
    gate_growth: InitVar[Any] = RETIRED["gate_growth"]  # not a setting any more
    gate_documents: InitVar[Any] = RETIRED["gate_documents"]

    def __post_init__(self, gate_growth: Any, gate_documents: Any) -> None:
        for name, value in (("gate_growth", gate_growth), ("gate_documents", gate_documents)):
            if value != RETIRED[name]:
                raise ConfigError(
                    f"model.router.{name} is {value!r}: gates that grow with the bank are gone; "
                    "remove the key"
                )
        if self.gate not in get_args(GateKind):
            raise ConfigError(
                f"model.router.gate is {self.gate!r}: give {' or '.join(get_args(GateKind))}"
            )
        _positive("model.router.top_k", self.top_k)
        _positive("model.router.chunk_size", self.chunk_size)
        for name in ("key_heads", "head_dim"):
            if (value := getattr(self, name)) is not None:
                _positive(f"model.router.{name}", value)
                if not self.decouple:
                    raise ConfigError(
                        f"model.router.{name} is {value} with decouple false: keys of the "
                        "attention route, in their own shape; remove it or set decouple true"
                    )
        scoring = self.scoring  # refuses reductions that nothing handles
        if self.gate != "none" and not scoring.scores_chunks:
            raise ConfigError(
                f"model.router.gate is {self.gate!r} with head_reduce {self.head_reduce}, "
                f"query_reduce {self.query_reduce}, chunk_reduce {self.chunk_reduce}: the gate "
                "needs mean, max or pooled, max; use gate none to reproduce a published variant"
            )

    @property
    def frame_routes(self) -> bool:
        """Whether the fixed words around a question are routing query tokens (SPEC section 8)."""
        return self.query_reduce != "pooled"

    @property
    def scoring(self) -> Scoring:
        """How documents are scored. Raises ConfigError for reductions that no scoring handles."""
        reductions = self.head_reduce, self.query_reduce, self.chunk_reduce
        found = scoring_of(self.similarity, self.decouple, *reductions)
        if found is None:
            raise ConfigError(
                "model.router has head_reduce {}, query_reduce {}, chunk_reduce {}: "
                "no scoring handles these together".format(*reductions)
            )
        return found


@dataclass(frozen=True)
class ModelConfig:
    """A decoder (SPEC, "Symbols"): N layers, d hidden, H heads, G kv_heads, D head_dim.

    architecture: the family of its backbone, a name in architecture.py.
    rope_scaling: how its rotary frequencies were stretched; null: not at all.
    answers: the form in which it is asked for an answer from texts: the protocol's, or a turn of a
    chat, which an instructed backbone knows (data_pipeline/protocol.py).
    embedding_std and linear_gain set the initial weights: embeddings N(0, embedding_std), linear
    layers N(0, linear_gain / sqrt(fan_in)). With tied embeddings the final norm starts at
    1 / (embedding_std sqrt(d)), so that logits start at unit scale.
    copy_start: in router layers the output projection starts as copy_start times the transposed
    value projection, so that what is read from memory raises its own token's logit from the first
    step on; 0 draws it like the others.
    """

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 512
    vocab_size: int = 2048
    rope_theta: float = 1e4
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    embedding_std: float = 1.0
    linear_gain: float = 0.577
    copy_start: float = 4.0
    router: RouterConfig = field(default_factory=RouterConfig)
    architecture: str = "qwen3"
    rope_scaling: RopeScaling | None = None
    answers: Answers = "protocol"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ModelConfig:
        """From the fields as YAML and JSON hold them."""
        given = {**settings, "router": RouterConfig(**settings.get("router", {}))}
        if given.get("rope_scaling") is not None:
            given["rope_scaling"] = RopeScaling(**given["rope_scaling"])
        return cls(**given)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"model.architecture is {self.architecture!r}: give {', '.join(ARCHITECTURES)}"
            )
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab_size"):
            _positive(f"model.{name}", getattr(self, name))
        if self.answers not in get_args(Answers):
            raise ConfigError(f"model.answers is {self.answers!r}: give protocol or chat")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model.heads is {self.heads}, not a multiple of model.kv_heads ({self.kv_heads}): "
                "every key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim is {self.head_dim}: RoPE needs an even number")
        read = set(self.reading_layers) - set(self.router_layers)
        if read:
            raise ConfigError(
                f"model.router.reads is {self.router.reads!r}: layer {min(read)} is none of the "
                f"router layers ({self.router.layers})"
            )

    @property
    def shape(self) -> Architecture:
        """What its layers have, whatever their sizes."""
        return ARCHITECTURES[self.architecture]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of weights by the names that architecture.py gives them."""
        return {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "vocab_size": self.vocab_size,
            "head_dim": self.head_dim,
            "queries": self.heads * self.head_dim,
            "keys": self.kv_heads * self.head_dim,
            "router_queries": self.router_heads * self.router_head_dim,
            "router_keys": self.router_key_heads * self.router_head_dim,
            "one": 1,
        }

    @property
    def router_layers(self) -> tuple[int, ...]:
        return parse_layers("layers", self.router.layers, self.layers)

    @property
    def last_router_layer(self) -> int:
        """Where nothing needs a document's states any more."""
        return self.router_layers[-1]

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """Router layers whose contexts attend to the documents they found."""
        if self.router.reads == "none":
            return ()
        named = parse_layers("reads", self.router.reads, self.layers)
        if self.router.reads in ("all", "upper_half"):
            return tuple(layer for layer in named if layer in self.router_layers)
        return named

    @property
    def router_key_heads(self) -> int:
        return self.router.key_heads or self.kv_heads

    @property
    def router_heads(self) -> int:
        """Of a router's queries: H as published, or as many as its keys have on their own."""
        return self.router.key_heads or self.heads

    @property
    def router_head_dim(self) -> int:
        return self.router.head_dim or self.head_dim

    @property
    def loss_layers(self) -> tuple[int, ...]:
        """Router layers that take the router loss."""
        first = 0 if self.router.loss_layers == "all" else self.layers // 2
        return tuple(layer for layer in self.router_layers if layer >= first)


def parse_layers(setting: str, text: str, layers: int) -> tuple[int, ...]:
    """Layer numbers of "upper_half", "all" or "2,3", ascending. Raises ConfigError."""
    if text == "upper_half":
        return tuple(range(layers // 2, layers))
    if text == "all":
        return tuple(range(layers))
    try:
        numbers = sorted(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"model.router.{setting} is {text!r}: "
            "give upper_half, all, or layer numbers such as '2,3'"
        ) from None
    if len(set(numbers)) < len(numbers) or not 0 <= numbers[0] <= numbers[-1] < layers:
        raise ConfigError(
            f"model.router.{setting} is {text!r}: give distinct layers from 0 to {layers - 1} "
            f"(model.layers is {layers})"
        )
    return tuple(numbers)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}: give a whole number of 1 or more")


# Geometries known by name. 4b: Qwen3-4B-Instruct-2507 with routers in layers 18..35, the
# publication's model.
PRESETS = {
    "4b": ModelConfig(
        layers=36, hidden=2560, heads=32, kv_heads=8, head_dim=128, ffn=9728, vocab_size=151_936,
        rope_theta=5e6, tie_embeddings=True, router=RouterConfig(top_k=16, chunk_size=64),
    ),
}  # fmt: skip
