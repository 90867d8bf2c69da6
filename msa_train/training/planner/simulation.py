"""A run's steps drawn from their pieces: samples of unequal lengths, messages, saving, deaths.

The plan (plan.py) has one step of equal samples on ranks that nothing delays. Here every group of
ranks draws its samples, and waits for the slowest where its layout makes it wait; what no plan
knows (a message's latency, a checkpoint's stall, how often a machine dies) is a number that a
person measured or assumes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import load_index
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.plan import StagePlan, TrainingPlan
from msa_train.training.planner.sizes import manifest_of

_DAY = 86_400
_RUNS = 1000  # in each of which machines die at other moments


def _piece(default: float | None, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Pieces:
    """What a step is drawn from, beside the plan. Times in seconds but for the latency."""

    latency_us: float = _piece(10.0, "of a message between two ranks, in microseconds")
    sample_spread: float | None = _piece(
        None,
        "standard deviation of samples' lengths, of their mean (default: as the shards' samples "
        "are, and 0 where none are built)",
    )
    loaded_per_s: float | None = _piece(
        None, "samples that the loader of a rank makes in a second (default: enough)"
    )
    save_stall_s: float = _piece(0.0, "for which training stands still at every checkpoint")
    deaths_per_node_day: float = _piece(0.0, "of a machine, each of which ends the run's processes")
    restart_s: float = _piece(60.0, "from a death to the first step after it")
    drawn_steps: int = field(default=1000, metadata={"help": "steps that are drawn"})
    draw_seed: int = field(default=0, metadata={"help": "of what is drawn"})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            shown = name.replace("_", "-")
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{shown} is {value}: give 0 or more")
        for name in ("drawn_steps", "loaded_per_s"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name.replace('_', '-')} is 0: give more")


@dataclass(frozen=True)
class Simulation:
    """Of the stage that takes the most time. parts: seconds of a step that counts, on average, by
    what they went to. low, high: of 90 % of the steps, and of the runs' goodput: the share of a
    run's time in which it made steps that counted."""

    stage: str
    parts: dict[str, float]
    step: float
    step_low: float
    step_high: float
    goodput: float
    goodput_low: float
    goodput_high: float
    assumed: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds of a step with its share of saving and of what is lost."""
        return sum(self.parts.values())

    @property
    def first(self) -> str:
        """What beside useful arithmetic takes the most: what breaks first."""
        rest = {name: value for name, value in self.parts.items() if name != _USEFUL}
        return max(rest, key=rest.__getitem__)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total, "first": self.first}


_USEFUL = "useful arithmetic"


def simulate(found: TrainingPlan, config: Config, pieces: Pieces) -> Simulation:
    """Of the layout of a plan."""
    stage = found.longest
    number = found.stages.index(stage)
    draw = np.random.default_rng(pieces.draw_seed)
    lengths, how = sample_lengths(config, number, pieces, draw)
    samples = stage.samples
    times = (
        stage.computing
        / samples
        * draw.choice(lengths, (pieces.drawn_steps, samples, found.layout.replicas))
    )
    steps = step_seconds(found, stage, times, pieces)
    step = sum(steps.values())
    every = config.training.checkpoint_every
    lost, share = deaths(found, stage.stage.steps, float(step.mean()), every, pieces, draw)
    useful = stage.work.useful / stage.work.total
    computed = float(steps["arithmetic"].mean())
    parts = {_USEFUL: useful * computed, "computed once more": (1 - useful) * computed}
    parts |= {name: float(each.mean()) for name, each in steps.items() if name != "arithmetic"}
    saves = math.ceil(stage.stage.steps / every) / stage.stage.steps
    parts |= {"saving": pieces.save_stall_s * saves, "lost to deaths": lost}
    low, high = np.quantile(step, (0.05, 0.95))
    goodput = np.quantile(share, (0.05, 0.95))
    return Simulation(
        stage.stage.name, parts, float(step.mean()), float(low), float(high),
        float(share.mean()), float(goodput[0]), float(goodput[1]), (how, *_said(pieces)),
    )  # fmt: skip


def sample_lengths(
    config: Config, stage: int, pieces: Pieces, draw: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Lengths of a stage's samples, of which the mean is 1, and where they are from."""
    spread = pieces.sample_spread
    if spread is None and (manifest := manifest_of(config)) is not None:
        try:
            index = load_index(config.manifest_folder, manifest)
        except DataError as error:
            raise ConfigError(f"{error}; or give --sample-spread") from error
        sizes = index["size"][np.isin(index["stage"], _built_stages(config, stage))].astype(float)
        found = sizes / sizes.mean()
        return found, f"samples are as long as the {len(found):,} of the shards (by their bytes)"
    if not spread:
        return np.ones(1), "all samples are of one length (--sample-spread)"
    # Lengths are above 0, and some are far above the mean.
    width = math.sqrt(math.log(1 + spread**2))
    found = draw.lognormal(-(width**2) / 2, width, 100_000)
    return found / found.mean(), f"samples' lengths are log-normal, spread {spread:g} of their mean"


def _built_stages(config: Config, stage: int) -> list[int]:
    """Of the shards: those whose samples a stage of the run reads."""
    if config.stages[stage].draws_from:
        return config.drawn_stages(config.stages[stage])
    return [sum(not each.draws_from for each in config.stages[:stage])]


def waits_each_sample(layout: Layout) -> bool:
    """Whether all ranks meet in every sample: ZeRO-2 reduces its gradients, ZeRO-3 gathers for it,
    the gradient cache agrees on its groups. Else they meet at the end of a step."""
    return layout.zero >= 2 or layout.cache is not None


def step_seconds(
    found: TrainingPlan, stage: StagePlan, times: np.ndarray, pieces: Pieces
) -> dict[str, np.ndarray]:
    """What every drawn step's seconds go to. times: [steps, samples, groups of ranks], of the
    arithmetic of each sample."""
    own = times.sum(1)
    slowest = times.max(2).sum(1) if waits_each_sample(found.layout) else own.max(1)
    open_, hidden = stage.seconds_sent(found.cluster)
    hops = sum(each.hops for each in stage.traffic if not each.hidden)
    steps = {
        "arithmetic": own.mean(1),
        "waiting for longer samples": slowest - own.mean(1),
        "update": np.full(len(times), stage.updating),
        "traffic": open_ + np.maximum(0.0, hidden - slowest),
        "latency of messages": np.full(len(times), hops * pieces.latency_us / 1e6),
    }
    loading = times.shape[1] / pieces.loaded_per_s if pieces.loaded_per_s else 0.0
    # Samples are made while a step is computed: the longer of both takes its time.
    steps["waiting for data"] = np.maximum(0.0, loading - sum(steps.values()))
    return steps


def deaths(
    found: TrainingPlan, steps: int, step: float, every: int, pieces: Pieces,
    draw: np.random.Generator,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """Seconds lost per step that counts, and the goodput of every drawn run.

    A death (they come at random, at the same rate in every moment) throws the run back to its last
    checkpoint. So between two checkpoints runs try until nobody dies for as long as that takes.
    """
    tries = math.ceil(steps / every)
    between = min(steps, every) * step + pieces.save_stall_s
    rate = found.cluster.nodes * pieces.deaths_per_node_day / _DAY
    useful = steps * step
    lost = np.zeros(_RUNS)
    reached = math.exp(-rate * between)
    if reached < 1e-6:
        raise ConfigError(
            f"deaths-per-node-day is {pieces.deaths_per_node_day:g} on {found.cluster.nodes} "
            f"machines, where {between:,.0f} s lie between two checkpoints: the run would never "
            "reach the next; give a lower training.checkpoint_every"
        )
    if rate:
        for run, died in enumerate(draw.negative_binomial(tries, reached, _RUNS)):
            # Moments of deaths that came before the next checkpoint.
            at = -np.log1p(-draw.random(died) * (1 - reached)) / rate
            lost[run] = at.sum() + died * pieces.restart_s
    saving = tries * pieces.save_stall_s
    return float(lost.mean()) / steps, useful / (useful + saving + lost)


def _said(pieces: Pieces) -> list[str]:
    found = [
        f"a message takes {pieces.latency_us:g} us (--latency-us), messages of a collective go "
        "through a tree",
        "arithmetic is in proportion to a sample's length; ranks that share a sample have equal "
        "parts of it, and are equally fast",
    ]
    if pieces.loaded_per_s is None:
        found.append("nobody waits for data (--loaded-per-s)")
    if not pieces.deaths_per_node_day:
        found.append("no machine dies (--deaths-per-node-day)")
    if not pieces.save_stall_s:
        found.append("saving takes no time (--save-stall-s)")
    return found
