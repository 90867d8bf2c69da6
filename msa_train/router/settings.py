"""Settings of `msa router`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.errors import check_least
from msa_train.errors import ConfigError
from msa_train.memory.search.settings import flag
from msa_train.model.config import ModelConfig

RECALL_AT = (1, 5, 16)  # the first documents among which recall looks, here and in evaluation
_DEPTHS = (1 / 30, 5 / 30, 8 / 30)  # of the layers that voted best in SmolLM2-135M (SPEC section 8)


@dataclass(frozen=True)
class _Shape:
    """A router in its own shape, made of a sample of passages.

    key_heads, head_dim: None for as many heads as the backbone's keys have, together as wide as its
    states. passages: documents that are looked at, at most.
    """

    key_heads: int | None = flag(
        None, "heads of a router key (default: as many as the backbone's keys have)"
    )
    head_dim: int | None = flag(
        None, "numbers of each (default: all heads together as wide as the backbone's states)"
    )
    passages: int = flag(4000, "documents that are looked at, at most")
    seed: int = flag(0, "of the draw of those documents")

    def __post_init__(self) -> None:
        given = [name for name in ("key_heads", "head_dim") if getattr(self, name) is not None]
        check_least(1, self, "", "passages", *given, error=ConfigError)
        check_least(0, self, "", "seed", error=ConfigError)

    def _applied(self, config: ModelConfig, layers: str, reads: str) -> ModelConfig:
        heads = self.key_heads or config.kv_heads
        router = replace(
            config.router,
            layers=layers,
            reads=reads,
            key_heads=heads,
            head_dim=self.head_dim or -(-config.hidden // heads),
            decouple=True,
            similarity="cosine",
            head_reduce="mean",
            query_reduce="pooled",
            chunk_reduce="max",
            gate="none",
        )
        return replace(config, router=router)


@dataclass(frozen=True)
class StartSettings(_Shape):
    """layers, reads: as in RouterConfig; layers None: early ones, at the depths that were best when
    measured."""

    layers: str | None = flag(
        None,
        "layers that get a router: numbers such as 1,5,8, upper_half, all (default: early ones; "
        "`msa router probe` says which are best)",
    )
    reads: str = flag(
        "none",
        "router layers that attend to pooled keys and values; none: the backbone computes what it "
        "did, until training opens them",
        metavar="LAYERS",
    )

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The model with a router of one pooled query and no gate."""
        return self._applied(config, self.layers or _early(config.layers), self.reads)


@dataclass(frozen=True)
class ProbeSettings(_Shape):
    """questions: that are asked about the passages, at most."""

    questions: int = flag(500, "questions that are asked about them, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, self, "", "questions", error=ConfigError)

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The model with a router of one pooled query in every layer."""
        return self._applied(config, "all", "none")


@dataclass(frozen=True)
class FitSettings:
    """How a router is fitted.

    pairs: questions of each corpus, at most, drawn by the seed (None: all).
    steps, lr: of AdamW, with a warm-up of a tenth and a cosine down to a twentieth. temperature: of
    the router loss. questions, documents: of a step; beside those documents that answer them.
    dropout: of the cached means. held_out: questions of each corpus, at most, that are only looked
    at; the weights kept are the best of those looks, every `look_every` steps, and fitting ends
    after `patience` looks that were no better.
    """

    pairs: int | None = flag(None, "questions of each corpus, at most (default: all)")
    steps: int = flag(150, "steps, at most")
    lr: float = flag(1e-3, "largest learning rate", metavar="X")
    temperature: float = flag(0.03, "of the router loss", metavar="X")
    questions: int = flag(256, "questions of a step")
    documents: int = flag(1500, "documents of a step, beside those that answer its questions")
    dropout: float = flag(0.0, "of the cached means", metavar="X")
    held_out: int = flag(500, "questions of each corpus that only judge, at most a tenth of them")
    look_every: int = flag(25, "steps between looks at those questions")
    patience: int = flag(3, "looks without a better result after which fitting ends")
    seed: int = flag(0, "of what is drawn")

    def __post_init__(self) -> None:
        names = ("steps", "questions", "documents", "held_out", "look_every", "patience")
        given = () if self.pairs is None else ("pairs",)
        check_least(1, self, "", *given, *names, error=ConfigError)
        check_least(0, self, "", "seed", error=ConfigError)
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}: give a number between 0 and 1")
        if not 0.001 <= self.temperature <= 0.5:
            raise ConfigError(f"temperature is {self.temperature}: give 0.001 to 0.5")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: give 0 or more, less than 1")


@dataclass(frozen=True)
class ReadingSettings:
    """What a model learns to read from.

    questions: at most, drawn from all of them; passages: what the router brings beside those that
    answer, at most. held_out_share: of the passages, about which questions are held out.
    """

    questions: int = flag(4096, "questions, at most")
    passages: int = flag(4, "wrong passages of each question: the first that the router brings")
    held_out_share: float = flag(
        0.05, "share of the passages whose questions are held out", metavar="X"
    )
    seed: int = flag(0, "of what is drawn")

    def __post_init__(self) -> None:
        check_least(1, self, "", "questions", "passages", error=ConfigError)
        check_least(0, self, "", "seed", error=ConfigError)
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: give 0 to below 1")


def _early(layers: int) -> str:
    numbers = sorted({min(layers - 1, round(depth * layers)) for depth in _DEPTHS})
    return ",".join(map(str, numbers))
