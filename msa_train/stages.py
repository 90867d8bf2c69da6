"""The stages of a run: how long each is, its learning rate, its losses and its data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.errors import check_least
from data_pipeline.settings import CorpusStage, StageData
from msa_train.errors import ConfigError

Trains = Literal["all", "router", "reader"]


@dataclass(frozen=True)
class Stage:
    """A stage of training: L = lm_weight LM + router_weight router (SPEC section 3).

    steps: how many; or tokens: as many steps as read this many memory tokens.
    epochs: samples are built for one epoch and read this many times, each time in another order.
    lr, final_lr: the learning rate goes linearly from one to the other (null: it stays).
    warmup_steps: steps in which the learning rate rises linearly from zero.
    queue_documents: the router keys of this many documents of recent banks are further negatives
    for the router's queries (0: none); each rank keeps its own.
    trains: all weights; the router's alone (its projections and its gate); or the reader's, which
    are those of the layers above the last router layer: what documents are encoded to, and what is
    found, stay as they are.
    data: what is read, where that differs from the data section.
    """

    name: str
    lr: float
    steps: int | None = None
    tokens: int | None = None
    epochs: int = 1
    final_lr: float | None = None
    warmup_steps: int = 0
    lm_weight: float = 1.0
    router_weight: float = 0.1
    queue_documents: int = 0
    trains: Trains = "all"
    data: StageData = field(default_factory=StageData)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise self._error("steps", f"{self.steps} and tokens {self.tokens}: give one of them")
        place = f"stages[{self.name}]."
        check_least(1, self, place, "steps", "tokens", "epochs", error=ConfigError)
        check_least(
            0, self, place,
            "lr", "final_lr", "warmup_steps", "lm_weight", "router_weight", "queue_documents",
            error=ConfigError,
        )  # fmt: skip
        if not self.lm_weight and not self.router_weight:
            raise self._error("lm_weight", "0, and router_weight too: make one positive")

    def amount(self, batch_samples: int) -> CorpusStage:
        """The data of this stage, at batch_samples samples per step."""
        if self.steps is None:
            return CorpusStage(self.data, tokens=self.tokens, epochs=self.epochs)
        samples, rest = divmod(self.steps * batch_samples, self.epochs)
        if rest:
            raise self._error(
                "epochs",
                f"{self.epochs}, which does not divide its {self.steps * batch_samples} samples "
                "(steps x training.batch_samples): change one of them",
            )
        return CorpusStage(self.data, samples=samples, epochs=self.epochs)

    def _error(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"stages[{self.name}].{key} is {what}")


def trained_alone(trains: Collection[Trains]) -> Trains | None:
    """The one part of the model that all stages of a run train; None where more is trained."""
    parts = set(trains)
    return parts.pop() if len(parts) == 1 and "all" not in parts else None


@dataclass(frozen=True)
class Schedule:
    """Which stage a step belongs to, and its learning rate. steps: of each stage."""

    stages: Sequence[Stage]
    steps: Sequence[int]

    @property
    def total(self) -> int:
        return sum(self.steps)

    def place(self, step: int) -> tuple[int, int]:
        """(stage, step within it) of a step, all counted from 0."""
        for i, steps in enumerate(self.steps):
            if step < steps:
                return i, step
            step -= steps
        raise AssertionError("the run has no such step")

    def stage(self, step: int) -> Stage:
        return self.stages[self.place(step)[0]]

    def learning_rate(self, step: int) -> float:
        """Linear from lr to final_lr over the stage, under its linear warm-up."""
        i, place = self.place(step)
        stage = self.stages[i]
        final = stage.lr if stage.final_lr is None else stage.final_lr
        rate = stage.lr + (final - stage.lr) * place / max(1, self.steps[i] - 1)
        return rate * min(1.0, (place + 1) / max(1, stage.warmup_steps))
