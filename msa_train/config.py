"""Every setting of a run: frozen dataclasses, YAML + `--dotted.key value`, checked on load.

A run's YAML has the sections model, data, training and evaluation; unknown keys, wrong types and
impossible values are refused before anything heavy is imported, naming the key.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from data_pipeline.mixture import DataConfig
from data_pipeline.sources.needles import Task
from msa_train.errors import ConfigError
from msa_train.model.config import ModelConfig

_KINDS = {
    "tuple": "list, as in [1, 2]",
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
}


@dataclass(frozen=True)
class Phase:
    """A stretch of training: L = lm_weight LM + router_weight router (SPEC section 3).

    The learning rate goes linearly from lr to final_lr over the phase's steps.
    """

    name: str
    steps: int
    lr: float
    final_lr: float
    lm_weight: float
    router_weight: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"training.phases[{self.name}].steps is {self.steps}: give 1 or more")
        for name in ("lr", "final_lr", "lm_weight", "router_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"training.phases[{self.name}].{name} is {getattr(self, name)}: give 0 or more"
                )


@dataclass(frozen=True)
class WandbConfig:
    """What Weights & Biases gets, and how.

    mode: auto is online when logged in, else offline; off: not at all.
    name: of the run (null: the last part of output). group: null: the run's name.
    artifacts: record shards, checkpoints and exports as references to their files, as copies
    (files), or not (none).
    alert_spreads: alert when a loss is above the median of the last logged ones by so many times
    their median distance from it (0: never).
    finish_timeout_s: how long the end of a run waits for what is still to be sent.
    """

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "msa-train"
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    artifacts: Literal["none", "references", "files"] = "references"
    alert_spreads: float = 10.0
    init_timeout_s: int = 30
    finish_timeout_s: int = 120

    def __post_init__(self) -> None:
        if self.alert_spreads < 0:
            raise ConfigError(
                f"training.wandb.alert_spreads is {self.alert_spreads}: give 0 or more"
            )
        for name in ("init_timeout_s", "finish_timeout_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.wandb.{name} is {getattr(self, name)}: give 1 or more")


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains.

    micro_batches: samples (banks with their contexts) each data-parallel rank reads per step; they
    are accumulated one by one.
    recompute: keep a layer's input instead of its activations.
    gradient_cache_tokens: encode at most so many document tokens of a bank at once, twice, with
    equal gradients; bounds memory for banks of any size (null: a whole bank at once, once).
    clip: maximum gradient norm. lr_warmup_steps: linear warm-up at the start of the run.
    checkpoint_every: steps between checkpoints; the last one is always kept.
    skipped_steps_limit: steps in a row whose gradients are not finite (each is skipped and counted)
    before the run stops.
    timeout_s: how long a rank waits for another before it fails, naming the step.
    """

    phases: tuple[Phase, ...] = (
        Phase("router", 100, 2e-3, 2e-3, 0.1, 1.0),
        Phase("main", 1000, 2e-3, 5e-4, 1.0, 0.1),
    )
    micro_batches: int = 1
    tensor_parallel: int = 1
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    gradient_cache_tokens: int | None = None
    lr_warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    skipped_steps_limit: int = 10
    timeout_s: int = 600
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if not self.phases:
            raise ConfigError("training.phases is empty: give at least one phase")
        for name in (
            "micro_batches", "tensor_parallel", "log_every", "checkpoint_every",
            "keep_checkpoints", "skipped_steps_limit", "timeout_s",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give 1 or more")
        for name in ("lr_warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"training.betas is {self.betas}: give two numbers from 0 to below 1")
        if self.gradient_cache_tokens is not None and self.gradient_cache_tokens < 1:
            raise ConfigError(
                f"training.gradient_cache_tokens is {self.gradient_cache_tokens}: give 1 or more, "
                "or null"
            )
        if self.clip <= 0:
            raise ConfigError(f"training.clip is {self.clip}: give a positive gradient norm")
        if self.precision == "bf16" and self.zero_stage == 0:
            # DeepSpeed's optimizer there starts with a hidden step: the first update is wrong.
            raise ConfigError(
                "training.zero_stage is 0 with precision bf16, which DeepSpeed computes wrongly: "
                "use 1, equal in numbers and smaller"
            )

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class EvaluationConfig:
    """What `msa eval` asks.

    memory_tokens: lengths of the needle memories; every length answers the same questions.
    niah_tasks: they share one set of documents in equal parts. questions: of each needle task.
    text_questions: how many of them are also answered with texts appended (each costs several
    times as much), and by the controls. resamples: of the bootstrap. workers: processes that ask
    (None: one per core; always one where an accelerator does the work).
    """

    memory_tokens: tuple[int, ...] = (16_384, 65_536, 262_144, 1_048_576)
    niah_tasks: tuple[Task, ...] = ("single", "multi_value")
    questions: int = 1024
    text_questions: int = 128
    pydocs_questions: int = 1000
    resamples: int = 2000
    batch_contexts: int = 64
    workers: int | None = None
    seed: int = 20_000

    def __post_init__(self) -> None:
        if not self.memory_tokens or min(self.memory_tokens) < 1:
            raise ConfigError(f"evaluation.memory_tokens is {self.memory_tokens}: give lengths")
        if not self.niah_tasks or len(set(self.niah_tasks)) < len(self.niah_tasks):
            raise ConfigError(f"evaluation.niah_tasks is {self.niah_tasks}: give each task once")
        for name in (
            "questions", "text_questions", "pydocs_questions", "resamples", "batch_contexts",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}: give 1 or more")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"evaluation.workers is {self.workers}: give 1 or more, or null")


@dataclass(frozen=True)
class Config:
    """One run. `output` holds its shards, checkpoints, export, banks and reports."""

    output: str = "runs/default"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if not self.model.loss_layers and any(p.router_weight for p in self.training.phases):
            raise ConfigError(
                f"model.router.loss_layers is {self.model.router.loss_layers}, but no layer of "
                f"model.router.layers ({self.model.router.layers}) is in the upper half: nothing "
                "would train the router; use loss_layers all"
            )
        ranks = self.training.tensor_parallel
        for name in ("kv_heads", "ffn", "vocab_size"):
            value = getattr(self.model, name)
            if value % ranks:
                raise ConfigError(
                    f"model.{name} is {value}, not divisible by training.tensor_parallel ({ranks})"
                )
        if ranks > 1 and not self.model.router.single_product:
            raise ConfigError(
                f"training.tensor_parallel is {ranks}: the router's reductions must then be "
                "head_reduce mean, query_reduce max, chunk_reduce max"
            )

    @property
    def path(self) -> Path:
        return Path(self.output)

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(to_plain(self), sort_keys=False))


def to_plain(config: Any) -> Any:
    """A dataclass as dicts and lists that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    return plain(asdict(config))


def load_config(arguments: list[str]) -> Config:
    """Config of `--config FILE --dotted.key value ...`. Raises ConfigError, naming the key."""
    parser = ArgumentParser(exit_on_error=False, prog="msa")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Config, nested_key=None, sub_configs=False)
    try:
        return Config(**_values(parser, arguments))
    except ArgumentError as error:
        raise ConfigError(_in_plain_words(error)) from None


def load_config_file(path: Path) -> Config:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    return load_config(["--config", str(path)])


def _values(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    chosen = parser.instantiate(parser.parse_args(arguments))
    return {name: value for name, value in vars(chosen).items() if name != "config"}


def _in_plain_words(error: Exception) -> str:
    """The parser's message with names of YAML's kinds instead of Python's types."""
    text = str(error).replace("typing.Literal", "choice of ")
    for kind, plain in _KINDS.items():
        text = text.replace(f"a <class '{kind}'>", plain)
    return text


if __name__ == "__main__":  # python -m msa_train.config FILE [--dotted.key value]: show it resolved
    yaml.safe_dump(to_plain(load_config(sys.argv[1:])), sys.stdout, sort_keys=False)
