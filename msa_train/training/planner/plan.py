"""A run on given cards: what each rank holds, sends and computes, how long it takes, what it costs.

Arithmetic alone: nothing is allocated, and no GPU has confirmed it (docs/scaling.md). `msa plan
train` prints it, and a rank whose memory runs out prints its part beside what was allocated.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.hardware import RESERVE, Cluster, gb
from msa_train.training.planner.layout import Layout, layouts, refusal, samples_of
from msa_train.training.planner.memory import RankBytes, needed, rank_bytes
from msa_train.training.planner.sizes import StageSize
from msa_train.training.planner.traffic import Traffic, traffic
from msa_train.training.planner.weights import parts, weights
from msa_train.training.planner.work import StepWork, work

_DAY = 86_400
# Bytes that an update moves for an element: gradient and master weight, two moments, read and
# written, and the narrow weight.
_UPDATED = 4 + 8 + 16 + 2


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. utilisation: share of the peak that arithmetic reaches while it
    runs. price_per_gpu_hour: None: unknown. host_ram: bytes of each machine (None: unknown)."""

    utilisation: float = field(
        default=0.4,
        metadata={"help": "share of a card's peak that arithmetic reaches: assumed, not measured"},
    )
    price_per_gpu_hour: float | None = field(
        default=None, metadata={"help": "in any currency; without it no money is counted"}
    )
    host_ram: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"utilisation is {self.utilisation}: give a share from 0 to 1")
        price = self.price_per_gpu_hour
        if price is not None and not 0 <= price < math.inf:
            raise ConfigError(f"price-per-gpu-hour is {price}: give 0 or more")


@dataclass(frozen=True)
class StagePlan:
    """A step of a stage on one rank. tokens: memory tokens of the step, on all ranks; samples: that
    the rank reads. computing, updating, sending: seconds; of sending only what arithmetic does not
    hide."""

    stage: StageSize
    tokens: int
    samples: int
    work: StepWork
    traffic: tuple[Traffic, ...]
    bytes: tuple[RankBytes, ...]
    computing: float
    updating: float
    sending: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.computing + self.updating + self.sending

    @property
    def total(self) -> float:
        """Seconds of the stage."""
        return self.seconds * self.stage.steps

    def seconds_sent(self, cluster: Cluster) -> tuple[float, float]:
        """Seconds of traffic that ranks wait for, and of what goes on behind arithmetic."""
        return _seconds_sent(self.traffic, cluster)


@dataclass(frozen=True)
class TrainingPlan:
    layout: Layout
    cluster: Cluster
    assumed: Assumed
    parameters: dict[str, int]  # of the whole model
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def longest(self) -> StagePlan:
        """The stage that takes the most time."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def fullest(self) -> StagePlan:
        """The stage whose ranks hold the most."""
        return max(self.stages, key=lambda stage: needed(stage.bytes))

    @property
    def need(self) -> int:
        """Bytes of each card."""
        return needed(self.fullest.bytes) + RESERVE

    @property
    def host_need(self) -> int:
        """Bytes that are sent to a machine's memory, at most."""
        found, ranks = self.fullest.bytes, self.cluster.per_node
        writers = min(self.layout.tensor, ranks)
        return ranks * needed(found, "host") + writers * needed(found, "writer")

    @property
    def lacking(self) -> str | None:
        """What is too small, as a sentence."""
        have = self.cluster.card.bytes
        if self.need > have:
            return f"each card needs {gb(self.need)} and has {gb(have)}"
        host = self.assumed.host_ram
        if host is not None and self.host_need > host:
            return f"each machine needs {gb(self.host_need)} of memory and has {gb(host)}"
        return None

    @property
    def tokens(self) -> int:
        """Memory tokens that the run reads."""
        return sum(each.tokens * each.stage.steps for each in self.stages)

    def seconds(self, tokens: int | None = None) -> float:
        """Of the run, or of so many memory tokens in its stages' proportions."""
        whole = sum(stage.total for stage in self.stages)
        return whole if tokens is None else whole * tokens / self.tokens

    def money(self, tokens: int | None = None) -> float | None:
        price = self.assumed.price_per_gpu_hour
        return None if price is None else self.seconds(tokens) / 3600 * price * self.cluster.cards

    @property
    def model_utilisation(self) -> float:
        """Useful FLOPs of the longest stage's step, of what the cards' peak would do in its time:
        the publications' MFU."""
        stage = self.longest
        return stage.work.useful / stage.seconds / self.cluster.card.flops

    def to_json(self, tokens: int | None = None) -> dict[str, Any]:
        return {
            "layout": asdict(self.layout),
            "cards": self.cluster.cards,
            "nodes": self.cluster.nodes,
            "parameters": self.parameters,
            "fits": self.lacking is None,
            "lacking": self.lacking,
            "bytes": [asdict(each) for each in self.fullest.bytes],
            "reserve": RESERVE,
            "need": self.need,
            "have": self.cluster.card.bytes,
            "stages": [_stage_json(each, self.cluster) for each in self.stages],
            "tokens": self.tokens if tokens is None else tokens,
            "days": self.seconds(tokens) / _DAY,
            "money": self.money(tokens),
            "utilisation": self.assumed.utilisation,
            "model_utilisation": self.model_utilisation,
            "notes": list(self.notes),
        }


def _stage_json(found: StagePlan, cluster: Cluster) -> dict[str, Any]:
    sent = [
        asdict(each) | {"sent": each.sent, "seconds": each.seconds(cluster)}
        for each in found.traffic
    ]
    times = {name: getattr(found, name) for name in ("computing", "updating", "sending", "seconds")}
    return {
        "name": found.stage.name,
        "steps": found.stage.steps,
        "sample": asdict(found.stage.sample),
        "tokens_per_step": found.tokens,
        "flops": asdict(found.work) | {"total": found.work.total},
        "traffic": sent,
        **times,
    }


def plan(
    config: Config,
    layout: Layout,
    cluster: Cluster,
    stages: Sequence[StageSize],
    assumed: Assumed,
    fused: bool = True,
) -> TrainingPlan:
    """fused: as in Activations. Raises ConfigError for samples that the ranks cannot share."""
    samples, model = samples_of(config, layout), config.model
    held = weights(model, layout.tensor, frozenset(stage.trains for stage in config.stages))
    size = 2 if config.training.precision == "bf16" else 4
    rank = model, layout, held
    share = layout.tensor * layout.documents
    found = []
    for stage in stages:
        given = *rank, stage.sample, samples, size
        done = work(model, layout, stage.sample).times(samples / share)
        computing = done.total / cluster.card.flops / assumed.utilisation
        sent = traffic(*given)
        stored = rank_bytes(*given, fused, config.training.async_save)
        tokens = stage.sample.document_tokens * config.training.batch_samples
        updating = held.learning / layout.owners * _UPDATED
        updating /= cluster.card.bandwidth
        open_, hidden = _seconds_sent(sent, cluster)
        sending = open_ + max(0.0, hidden - computing)
        times = computing, updating, sending
        found.append(StagePlan(stage, tokens, samples, done, sent, stored, *times))
    whole, notes = parts(weights(model)), tuple(_notes(config, layout))
    return TrainingPlan(layout, cluster, assumed, whole, tuple(found), notes)


def _seconds_sent(sent: Sequence[Traffic], cluster: Cluster) -> tuple[float, float]:
    times = {True: 0.0, False: 0.0}
    for each in sent:
        times[each.hidden] += each.seconds(cluster)
    return times[False], times[True]


# Settings of DeepSpeed that change what is held at once.
_SIZES = {
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_max_live_parameters",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
}  # fmt: skip


def _notes(config: Config, layout: Layout) -> list[str]:
    found = []
    if config.training.precision == "fp32":
        found.append("training.precision is fp32: arithmetic is counted at the bfloat16 peak")
    if layout.sharded:
        found.append("where pooled states are sharded, what their exchanges send is not counted")
    sizes = config.training.deepspeed.get("zero_optimization", {}).keys() & _SIZES
    if layout.files is not None:
        sizes -= {"sub_group_size"}
    for key in sorted(sizes):
        found.append(
            f"training.deepspeed.zero_optimization.{key} is not looked at: bytes are those of the "
            "size that is taken where none is given"
        )
    if layout.offload != "none":
        place = "the host" if layout.files is None else "files"
        found.append(f"the update is timed as if {place} were as fast as the card's memory")
    return found


@dataclass(frozen=True)
class Ranking:
    """plans: that fit, fastest first. refused: reason -> layouts that have it."""

    plans: tuple[TrainingPlan, ...]
    refused: dict[str, tuple[Layout, ...]]


def ranked(
    config: Config, cluster: Cluster, stages: Sequence[StageSize], assumed: Assumed
) -> Ranking:
    """Every layout of these cards; with sharded pooled states, whose exchanges are not counted,
    where the settings say so or the same layout with gathered ones does not fit."""
    fitting: list[TrainingPlan] = []
    refused: dict[str, list[Layout]] = {}
    reasons: dict[tuple[int, int, int, bool], str | None] = {}
    longest = max(stage.sample.document_tokens for stage in stages)
    tried = deque(layouts(config, cluster, longest))
    while tried:
        layout = tried.popleft()
        divided = layout.tensor, layout.replicas, layout.zero, layout.sharded
        if divided not in reasons:
            reasons[divided] = refusal(config, layout)
        reason = reasons[divided]
        if reason is None:
            found = plan(config, layout, cluster, stages, assumed)
            if found.lacking is None:
                fitting.append(found)
                continue
            reason = _general(found)
            if layout.documents > 1 and not layout.sharded:
                tried.append(replace(layout, sharded=True))
        refused.setdefault(reason, []).append(layout)
    fitting.sort(key=lambda each: (each.seconds(), each.need))
    return Ranking(tuple(fitting), {why: tuple(each) for why, each in refused.items()})


def _general(found: TrainingPlan) -> str:
    """The same words for all layouts that lack the same."""
    short = "a card's" if found.need > found.cluster.card.bytes else "a machine's host"
    return f"more than {short} memory"
