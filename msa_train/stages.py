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
    draws_from: names of earlier stages. Samples are then those that were built for them, drawn by
    data.weights: none are built for this stage.
    stop_after: end after this many steps, though samples were built for more; the learning rate is
    as if the others followed.
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
    draws_from: tuple[str, ...] = ()
    stop_after: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise self._error("steps", f"{self.steps} and tokens {self.tokens}: give one of them")
        place = f"stages[{self.name}]."
        lengths = ("steps", "tokens", "epochs", "stop_after")
        check_least(1, self, place, *lengths, error=ConfigError)
        check_least(
            0, self, place,
            "lr", "final_lr", "warmup_steps", "lm_weight", "router_weight", "queue_documents",
            error=ConfigError,
        )  # fmt: skip
        if not self.lm_weight and not self.router_weight:
            raise self._error("lm_weight", "0, and router_weight too: make one positive")
        if self.stop_after and self.steps and self.stop_after > self.steps:
            raise self._error("stop_after", f"{self.stop_after}, but it has {self.steps} steps")
        if self.draws_from:
            self._check_mixture()

    def _check_mixture(self) -> None:
        """What makes samples is settled where they were built."""
        if self.steps is None:
            raise self._error("tokens", f"{self.tokens} with draws_from: give steps")
        for key, value, off in (("epochs", self.epochs, 1), ("stop_after", self.stop_after, None)):
            if value != off:
                raise self._error(key, f"{value} with draws_from: give the steps themselves")
        if not self.data.weights or not sum(self.data.weights.values()) > 0:
            raise self._error(
                "data.weights",
                f"{self.data.weights} with draws_from: give the weights by which samples are drawn",
            )
        for key, value in vars(self.data).items():
            if key != "weights" and value is not None:
                raise self._error(
                    f"data.{key}",
                    "given with draws_from, whose samples are built already: leave it out, or "
                    "leave out draws_from and build samples for this stage",
                )

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
    """Which stage a step belongs to, and its learning rate.

    planned: steps of each stage, before stop_after.
    """

    stages: Sequence[Stage]
    planned: Sequence[int]

    @classmethod
    def of(cls, stages: Sequence[Stage], samples: Sequence[int], batch_samples: int) -> Schedule:
        """samples: built for each stage that has its own; where they are of fewer stages than there
        are, it is a schedule of those before the first that has none."""
        left, planned = iter(samples), []
        for stage in stages:
            if (count := stage.steps if stage.draws_from else next(left, None)) is None:
                break
            planned.append(count if stage.draws_from else count * stage.epochs // batch_samples)
        return cls(stages[: len(planned)], planned)

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each stage."""
        pairs = zip(self.stages, self.planned, strict=True)
        return tuple(min(count, stage.stop_after or count) for stage, count in pairs)

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
        """Linear from lr to final_lr over the stage as planned, under its linear warm-up."""
        i, place = self.place(step)
        stage = self.stages[i]
        final = stage.lr if stage.final_lr is None else stage.final_lr
        rate = stage.lr + (final - stage.lr) * place / max(1, self.planned[i] - 1)
        return rate * min(1.0, (place + 1) / max(1, stage.warmup_steps))
