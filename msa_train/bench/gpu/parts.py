"""The parts of the battery, in order of value: what each measures, and for how long it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msa_train.bench.gpu import (
    accuracy,
    attention,
    continual,
    encode,
    memory,
    route,
    training,
)
from msa_train.bench.gpu.results import Row
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """What a part is given: its sizes, the seconds it has, and a backbone's folder."""

    sizes: BatterySizes
    seconds: float
    backbone: Path | None = None


@dataclass(frozen=True)
class BatteryPart:
    """title: of its table. minutes: at most. planned: (what, unit) of its rows, which `run` gives
    one by one; the most valuable first."""

    title: str
    minutes: float
    planned: Callable[[BatterySizes], Sequence[tuple[str, str]]]
    run: Callable[[Work], Iterator[Row]]


PARTS: dict[str, BatteryPart] = {
    "accuracy": BatteryPart(
        "Is it right: RMS error of the kernels against float64",
        4,
        accuracy.planned,
        lambda work: accuracy.rows(work.sizes),
    ),
    "route": BatteryPart(
        "Routing through 100M tokens, one layer of the 4B geometry",
        4,
        route.planned,
        lambda work: route.rows(work.sizes),
    ),
    "memory": BatteryPart(
        "100M tokens of the 4B geometry on one card, from question to tokens",
        6,
        memory.planned,
        lambda work: memory.rows(work.sizes),
    ),
    "train-4b": BatteryPart(
        "A training step: layers of the 4B geometry",
        4,
        training.planned,
        lambda work: training.rows(work.sizes, "4B"),
    ),
    "train-0.6b": BatteryPart(
        "A training step: the whole 0.6B geometry",
        4,
        training.planned,
        lambda work: training.rows(work.sizes, "0.6B"),
    ),
    "attention": BatteryPart(
        "Attention beside what libraries offer, forward and backward",
        4,
        attention.planned,
        lambda work: attention.rows(work.sizes),
    ),
    "encode": BatteryPart(
        "Encoding documents", 2, encode.planned, lambda work: encode.rows(work.sizes)
    ),
    "backbone": BatteryPart(
        "Continual training of a real backbone",
        60,
        continual.planned,
        lambda work: continual.rows(work.sizes, work.backbone, work.seconds),
    ),
}  # fmt: skip


def known_parts(names: Sequence[str]) -> tuple[str, ...]:
    """In the order they are measured. Raises ConfigError for an unknown part."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"parts names {name!r}: give some of {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)
