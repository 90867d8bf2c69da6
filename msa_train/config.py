"""Every setting of a run: frozen dataclasses, YAML + `--dotted.key value`, checked on load.

A run's YAML has the sections model, data, stages, training and evaluation; unknown keys, wrong
types and impossible values are refused before anything heavy is imported, naming the key.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from data_pipeline import files
from data_pipeline.errors import DataError, check_least
from data_pipeline.settings import DataConfig, TrainingCorpus
from data_pipeline.sources.niah import NeedleTask
from msa_train.errors import ConfigError
from msa_train.model.config import ModelConfig, Recompute
from msa_train.stages import Stage

_KINDS = {
    "collections.abc.Mapping": "mapping, as in {a: 1}",
    "tuple": "list, as in [1, 2]",
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
}


# Of DeepSpeed's settings: what is passed on, and what this trainer has a setting of its own for, or
# cannot honour. Any other is refused, too: nothing here would read it.
_PASSED = {
    "zero_optimization", "aio", "communication_data_type", "prescale_gradients",
    "gradient_predivide_factor",
}  # fmt: skip
_BATCH = "set training.batch_samples, which the ranks share, each reading its part one by one"
_PRECISION = "set training.precision"
_OPTIMIZER = "it is torch's AdamW; set training.betas and weight_decay"
_PIPELINE = (
    "layers are not divided into pipeline stages, which would wait for each other and hold as many "
    'activations as now (docs/scaling.md, "Why no pipeline"): divide samples by '
    "training.document_parallel, weights by training.zero_stage 3 or training.tensor_parallel"
)
_REPORTS = "numbers go to metrics.jsonl and training.wandb, every training.log_every steps"
_OWNED = {
    "train_batch_size": _BATCH, "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH, "managed_gradient_accumulation": _BATCH,
    "gradient_clipping": "set training.clip", "gradient_allreduce_op": "losses are scaled for avg",
    "bf16": _PRECISION, "torch_autocast": _PRECISION, "data_types": _PRECISION,
    "fp16": f"{_PRECISION} to bf16: nothing here scales losses",
    "amp": f"{_PRECISION} to bf16: nothing here scales losses",
    "optimizer": _OPTIMIZER, "zero_allow_untested_optimizer": _OPTIMIZER,
    "zero_force_ds_cpu_optimizer": _OPTIMIZER,
    "scheduler": "set lr, final_lr and warmup_steps of stages",
    "activation_checkpointing": "set training.recompute",
    "checkpoint": "checkpoints are this trainer's; it reads those of any layout",
    "elasticity": "resume on another number of ranks",
    "tensor_parallel": "set training.tensor_parallel", "pipeline": _PIPELINE,
    "sequence_parallel_size": "set training.sequence_parallel or training.document_parallel",
    "steps_per_print": _REPORTS, "wall_clock_breakdown": _REPORTS, "wandb": _REPORTS,
    "tensorboard": _REPORTS, "csv_monitor": _REPORTS, "comet": _REPORTS,
}  # fmt: skip
_OFFLOADS = ("offload_optimizer", "offload_param")
_ZERO_OWNED = {
    "stage": "set training.zero_stage",
    "elastic_checkpoint": "checkpoints are read by any layout as it is",
    "load_from_fp32_weights": "full precision is always kept",
    "compute_grad_norm": "training.clip needs the norm",
    "cpu_offload": "give offload_optimizer: {device: cpu}",
    "cpu_offload_param": "give offload_param: {device: cpu}",
    "cpu_offload_use_pin_memory": "give pin_memory in offload_optimizer or offload_param",
} | dict.fromkeys(
    (
        "legacy_stage1", "zenflow", "zero_hpz_partition_size", "mics_shard_size",
        "zero_quantized_weights", "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
    ),
    "checkpoints could not be continued from that",
)  # fmt: skip


@dataclass(frozen=True)
class WandbConfig:
    """What is sent to Weights & Biases, and how.

    mode: auto is online when logged in, else offline; off (in YAML also false) sends nothing.
    name: of the run (null: the last part of output). group: (null: the run's name).
    artifacts: record shards, checkpoints and exports as references to their files, as copies
    (files), or not (none).
    alert_spreads: alert when a loss exceeds the median of the last logged values by this many times
    their median distance from it (0: never).
    init_timeout_s, finish_timeout_s: the longest wait for W&B at the start and at the end of a run.
    """

    mode: Literal["auto", "online", "offline", "off"] | bool = "auto"
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
        if self.mode is True:
            raise ConfigError("training.wandb.mode is true: give auto, online, offline or off")
        if self.mode is False:
            object.__setattr__(self, "mode", "off")
        place, timeouts = "training.wandb.", ("init_timeout_s", "finish_timeout_s")
        check_least(0, self, place, "alert_spreads", error=ConfigError)
        check_least(1, self, place, *timeouts, error=ConfigError)


# What held-out evaluation says of a source, and whether more of it is better.
HELD_OUT_NUMBERS = {
    "lm": False, "perplexity": False, "router": False, "recall@1": True, "recall@k": True,
}  # fmt: skip
_BEST = re.compile(rf"held_out/(.+)/({'|'.join(map(re.escape, HELD_OUT_NUMBERS))})")


@dataclass(frozen=True)
class LossSpikeConfig:
    """What is done with a step whose loss spikes (msa_train/training/spikes.py): it is above

        median + spreads x max(MAD, 0.01 median)

    of the last steps of its stage that did not; MAD is their median distance from their median. The
    loss is the stage's, of all samples and ranks: lm_weight LM + router_weight router.

    policy: off (nothing looks at it). skip: the step changes no weight. roll_back: nor do the steps
    since the newest good checkpoint, whose weights and optimizer come back; what was read since is
    not read again, and the schedule goes on. lower: from this step on the learning rate is
    multiplied by `factor`, for `steps` steps (null: to the end of the stage, where it ends in any
    case); once more by a spike meanwhile.
    window: how many steps are looked at. least: steps of a stage before one can spike.
    limit: spikes in a row, with no other step between them, or for roll_back no good checkpoint,
    before the run stops.
    """

    policy: Literal["off", "skip", "roll_back", "lower"] = "off"
    spreads: float = 10.0
    window: int = 100
    least: int = 20
    limit: int = 10
    factor: float = 0.5
    steps: int | None = 100

    def __post_init__(self) -> None:
        place = "training.loss_spike."
        check_least(1, self, place, "window", "limit", "steps", error=ConfigError)
        check_least(2, self, place, "least", error=ConfigError)
        if self.least > self.window:
            raise ConfigError(
                f"{place}least is {self.least}, more than the {self.window} steps that are looked "
                "at: give less, or more as training.loss_spike.window"
            )
        if not 0 < self.spreads < math.inf:
            raise ConfigError(f"{place}spreads is {self.spreads}: give a positive number")
        if not 0 < self.factor < 1:
            raise ConfigError(f"{place}factor is {self.factor}: give a number between 0 and 1")


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains.

    start_from: weights to begin with: those of an export, or of a converted backbone without a
    router (null: random ones). The optimizer starts afresh; data.tokenizer.path should name the
    starting point's tokenizer.
    batch_samples: samples (banks with their contexts) of a step, over all data-parallel ranks; each
    rank reads its share one by one.
    tensor_parallel: ranks that share every layer's heads, feed-forward and vocabulary.
    sequence_parallel: these ranks also divide norms and the states between the products, by tokens.
    document_parallel: data-parallel ranks that share a sample: each encodes a part of its documents
    and asks a part of its contexts, and only pooled states go between them.
    pooled_states: those of a sample are gathered on each of these ranks; or stay where they were
    made (sharded), are scored there, and only what is found goes between the ranks.
    device: what the ranks compute on: cuda (a GPU each, over NCCL), cpu (over gloo, where a machine
    has fewer GPUs than ranks, or none), or auto: cuda where torch sees a GPU.
    deepspeed: settings of DeepSpeed as its own documentation has them, such as zero_optimization:
    {offload_optimizer: {device: cpu}}; those that a setting here stands for are refused.
    recompute: what is computed once more in the backward pass instead of kept: none, attention (a
    layer's norm, projections, routing and attention; its feed-forward part is kept), or layer (all
    but a layer's input). true and false, as older files have it, are layer and none.
    gradient_cache_tokens: encode at most this many document tokens of a bank at once, and each
    twice, with equal gradients: bounds memory for banks of any size (null: all at once, once).
    clip: maximum gradient norm.
    checkpoint_every: steps between checkpoints; there is always one after the last step.
    async_save: steps wait for a copy of the state on the host alone, which is hashed and written
    beside the steps that follow; the next checkpoint waits for that.
    held_out_every: steps between evaluations on held-out samples (0: never).
    held_out_samples: how many there are; training does not see them, and their data is the last
    stage's.
    best: the number of theirs that says which checkpoint is best, as held_out/niah/recall@1: where
    an evaluation finds a better one, that step is saved, and stays beside the newest ones (null:
    none does).
    damaged_samples: a sample that cannot be read ends the run, or is skipped and counted.
    shards: folder or URL of the shards (null: OUTPUT/shards); held-out samples are then read from
    `held_out` beside it, unless OUTPUT/held_out is there. cache_gb: how much of the shards behind a
    URL is kept under OUTPUT/shard-cache, and of held-out ones under OUTPUT/held-out-cache.
    skipped_steps_limit: steps in a row whose gradients are not finite (each is skipped and counted)
    before the run stops.
    loss_spike: what is done with a step whose loss is far above those before it.
    timeout_s: how long a rank waits for the others to come, and how long it may make no progress
    before all end, naming the one that is stuck.
    """

    start_from: str | None = None
    batch_samples: int = 2
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    document_parallel: int = 1
    pooled_states: Literal["gathered", "sharded"] = "gathered"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 1
    deepspeed: dict[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: Recompute | bool = "none"
    gradient_cache_tokens: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    async_save: bool = False
    held_out_every: int = 0
    held_out_samples: int = 16
    best: str | None = None
    damaged_samples: Literal["error", "skip"] = "error"
    shards: str | None = None
    cache_gb: float = 10.0
    skipped_steps_limit: int = 10
    loss_spike: LossSpikeConfig = field(default_factory=LossSpikeConfig)
    timeout_s: int = 600
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        check_least(
            1, self, "training.",
            "batch_samples", "tensor_parallel", "document_parallel", "log_every",
            "checkpoint_every", "keep_checkpoints", "held_out_samples", "skipped_steps_limit",
            "timeout_s",
            error=ConfigError,
        )  # fmt: skip
        from_zero = ("held_out_every", "weight_decay", "cache_gb")
        check_least(0, self, "training.", *from_zero, error=ConfigError)
        if isinstance(self.recompute, bool):
            object.__setattr__(self, "recompute", "layer" if self.recompute else "none")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"training.betas is {self.betas}: give two numbers from 0 to below 1")
        if self.gradient_cache_tokens is not None and self.gradient_cache_tokens < 1:
            raise ConfigError(
                f"training.gradient_cache_tokens is {self.gradient_cache_tokens}: give 1 or more, "
                "or null"
            )
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ConfigError(
                "training.sequence_parallel is true with training.tensor_parallel 1: it divides "
                "what tensor-parallel ranks hold alike; give tensor_parallel 2 or more, or false"
            )
        if self.pooled_states == "sharded" and self.document_parallel == 1:
            raise ConfigError(
                "training.pooled_states is sharded with training.document_parallel 1: there is one "
                "rank to keep them; give 2 or more, or gathered"
            )
        if self.best is not None and not _BEST.fullmatch(self.best):
            raise ConfigError(
                f"training.best is {self.best}: give held_out/SOURCE/NUMBER, with one of "
                f"{', '.join(HELD_OUT_NUMBERS)}"
            )
        if self.best is not None and not self.held_out_every:
            raise ConfigError(
                f"training.best is {self.best}, but training.held_out_every is 0: nothing would be "
                "evaluated; give how many steps are between evaluations"
            )
        if not self.clip > 0:
            raise ConfigError(f"training.clip is {self.clip}: give a positive gradient norm")
        self._check_deepspeed()
        if self.precision == "bf16" and self.zero_stage == 0:
            # DeepSpeed's optimizer there starts with a hidden step: the first update is wrong.
            raise ConfigError(
                "training.zero_stage is 0 with precision bf16, which DeepSpeed computes wrongly: "
                "use 1, equal in numbers and smaller"
            )

    def _check_deepspeed(self) -> None:
        """What is known without DeepSpeed; training.engine asks that for the rest."""
        for key in self.deepspeed:
            if key in _OWNED:
                raise ConfigError(f"training.deepspeed.{key} is not passed on: {_OWNED[key]}")
            if key not in _PASSED:
                raise ConfigError(
                    f"training.deepspeed.{key} is not passed on, as nothing here was tried with "
                    f"it: give {', '.join(sorted(_PASSED))}"
                )
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ConfigError(
                f"training.deepspeed.zero_optimization is {zero}: give a mapping, as in "
                "{overlap_comm: true}"
            )
        place = "training.deepspeed.zero_optimization"
        for key in zero.keys() & _ZERO_OWNED.keys():
            raise ConfigError(f"{place}.{key} is not passed on: {_ZERO_OWNED[key]}")
        if zero and not self.zero_stage:
            raise ConfigError(f"{place} is given, but training.zero_stage is 0: nothing reads it")
        if "offload_param" in zero and self.zero_stage < 3:
            raise ConfigError(
                f"{place}.offload_param is given, but training.zero_stage is {self.zero_stage}, "
                "where every rank has all weights: set it to 3"
            )
        self._check_states(zero.get("offload_optimizer"), f"{place}.offload_optimizer")
        if _device(zero.get("offload_param")) == "nvme":
            raise ConfigError(
                f"{place}.offload_param.device is nvme, and DeepSpeed writes and loads only "
                "weights that lie in memory: give cpu (offload_optimizer may go to nvme)"
            )
        away = [key for key in _OFFLOADS if _device(zero.get(key)) not in (None, "none")]
        if away == ["offload_param"]:
            raise ConfigError(
                f"{place}.offload_param is given without offload_optimizer: the states, several "
                "times as large as the weights, would stay; give offload_optimizer: {device: cpu}"
            )
        if (aio := self.deepspeed.get("aio", {})) and self.nvme_path is None:
            raise ConfigError("training.deepspeed.aio is given, but nothing is offloaded to nvme")
        if not isinstance(aio, dict):
            raise ConfigError(
                f"training.deepspeed.aio is {aio}: give a mapping, as in {{block_size: 1048576}}"
            )

    def _check_states(self, states: Any, place: str) -> None:
        """Of offload_optimizer, what DeepSpeed 0.19 accepts, and ignores or fails at later."""
        for key, default in (("ratio", 1), ("super_offload", False)):
            if isinstance(states, dict) and states.get(key, default) != default:
                raise ConfigError(
                    f"{place}.{key} is {states[key]}, which only DeepSpeed's own AdamW can do, and "
                    "torch's steps here: leave it out"
                )
        if _device(states) != "nvme":
            return
        if self.zero_stage < 3:
            raise ConfigError(
                f"{place}.device is nvme with training.zero_stage {self.zero_stage}, where "
                "DeepSpeed keeps the states in memory all the same: set zero_stage to 3, or device "
                "to cpu"
            )
        if not isinstance(path := states.get("nvme_path"), str) or not path:
            raise ConfigError(
                f"{place}.nvme_path is {path!r}: give a folder on each machine's own disk"
            )
        for key in ("pipeline_read", "pipeline_write"):
            if states.get(key):
                raise ConfigError(
                    f"{place}.{key} is given, under which DeepSpeed keeps the moments in memory "
                    "beside their files: leave it out"
                )
        count = states.get("buffer_count", 4)
        if isinstance(count, int) and count < 4:  # for a group's weights, gradients and moments
            raise ConfigError(f"{place}.buffer_count is {count}: give 4 or more")

    @property
    def nvme_path(self) -> Path | None:
        """Where the optimizer's states are while a run trains; None: in memory."""
        states = self.deepspeed.get("zero_optimization", {}).get("offload_optimizer")
        return Path(states["nvme_path"]) if _device(states) == "nvme" else None


def _device(offload: Any) -> str | None:
    """Of offload_optimizer or offload_param, as it is given; DeepSpeed checks what it is."""
    return offload.get("device") if isinstance(offload, dict) else None


@dataclass(frozen=True)
class EvaluationConfig:
    """What `msa eval` asks.

    memory_tokens: sizes of the needle memories; each is asked the same questions.
    niah_tasks: needle tasks, which share one set of documents in equal parts.
    questions: of each needle task. text_questions: how many of them are also answered with texts
    appended (each costs several times as much), and by the controls.
    pydocs_questions: about Python's documentation.
    resamples: of the bootstrap. batch_contexts: contexts that are answered at once.
    workers: processes that ask (null: one per core; always one where an accelerator computes).
    """

    memory_tokens: tuple[int, ...] = (16_384, 65_536, 262_144, 1_048_576)
    niah_tasks: tuple[NeedleTask, ...] = ("single", "multi_value")
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
        check_least(
            1, self, "evaluation.",
            "questions", "text_questions", "pydocs_questions", "resamples", "batch_contexts",
            error=ConfigError,
        )  # fmt: skip
        check_least(0, self, "evaluation.", "seed", error=ConfigError)
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"evaluation.workers is {self.workers}: give 1 or more, or null")


@dataclass(frozen=True)
class Config:
    """One run. `output` holds its shards, checkpoints, export, banks and reports."""

    output: str = "runs/default"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: tuple[Stage, ...] = (
        Stage("router", 2e-3, 100, warmup_steps=50, lm_weight=0.1, router_weight=1.0),
        Stage("main", 2e-3, 1000, final_lr=5e-4),
    )
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_least(0, self, "", "seed", error=ConfigError)
        if self.stages and all(stage.draws_from for stage in self.stages):
            raise ConfigError(
                "all stages have draws_from, and so none has samples that they could draw: give "
                f"the first one, {self.stages[0].name}, samples of its own (no draws_from), or put "
                "a stage before it that has them"
            )
        try:
            self.corpus  # noqa: B018 (impossible stages are refused now)
            if self.training.held_out_every:
                self.held_out  # noqa: B018 (and sources that hold nothing out)
        except DataError as error:
            raise ConfigError(str(error)) from error
        if not self.model.loss_layers and any(s.router_weight for s in self.stages):
            raise ConfigError(
                f"model.router.loss_layers is {self.model.router.loss_layers}, but no layer of "
                f"model.router.layers ({self.model.router.layers}) is in the upper half: nothing "
                "would train the router; use loss_layers all"
            )
        self._check_best()
        for place, stage in enumerate(self.stages):
            self._check_router_learns(stage)
            self._check_drawn(place, stage)
            if stage.queue_documents and self.training.pooled_states == "sharded":
                raise ConfigError(
                    f"stages[{stage.name}].queue_documents is {stage.queue_documents} with "
                    "training.pooled_states sharded: the queue needs the router keys of all "
                    "documents on every rank; give 0, or pooled_states gathered"
                )
        for stage in range(len(self.corpus.stages)):
            contexts = self.corpus.contexts(stage)
            if contexts.answer_text and contexts.answers != self.model.answers:
                raise ConfigError(
                    f"stages[{stage}] teaches answers from texts in the form {contexts.answers} "
                    f"(contexts.answers), but model.answers is {self.model.answers}: the model "
                    "would be asked otherwise than it was taught; set both alike"
                )
        ranks = self.training.tensor_parallel
        divided = {name: getattr(self.model, name) for name in ("kv_heads", "ffn", "vocab_size")}
        if self.model.router.key_heads:
            divided["router.key_heads"] = self.model.router.key_heads
        for name, value in divided.items():
            if value % ranks:
                raise ConfigError(
                    f"model.{name} is {value}, not divisible by training.tensor_parallel ({ranks})"
                )
        if ranks > 1 and not self.model.router.scoring.tensor_parallel:
            raise ConfigError(
                f"training.tensor_parallel is {ranks}: the router's reductions must then be "
                "head_reduce mean, query_reduce max or pooled, chunk_reduce max"
            )

    def _check_drawn(self, place: int, stage: Stage) -> None:
        """That what a stage draws is there, or will be once shards are built."""
        if not stage.draws_from:
            return
        what = f"stages[{stage.name}]"
        earlier = [each.name for each in self.stages[:place] if not each.draws_from]
        for name in stage.draws_from:
            if earlier.count(name) != 1 or stage.draws_from.count(name) != 1:
                raise ConfigError(
                    f"{what}.draws_from names {name!r}: give names of stages before it that have "
                    f"samples of their own, each once ({', '.join(earlier) or 'there is none'})"
                )
        if unknown := set(stage.data.weights) - set(self.data.sources):
            raise ConfigError(
                f"{what}.data.weights names {sorted(unknown)}: give {', '.join(self.data.sources)}"
            )
        drawn = [self.corpus.source_weights(number) for number in self.drawn_stages(stage)]
        for name, weight in stage.data.weights.items():
            if weight and not any(weights[name] for weights in drawn):
                raise ConfigError(
                    f"{what}.data.weights.{name} is {weight}, but the stages that it draws from "
                    f"({', '.join(stage.draws_from)}) have no samples of that source: give 0, or "
                    "a stage without draws_from, for which samples are built"
                )

    def _check_best(self) -> None:
        """Of what is known without samples; the trainer asks those for the rest."""
        if self.training.best is None:
            return
        source = _BEST.fullmatch(self.training.best)[1]
        try:
            sources = self.held_out.used_sources
        except DataError as error:
            raise ConfigError(f"training.best is {self.training.best}, but {error}") from error
        if source not in sources and source.removesuffix("_text") not in sources:
            raise ConfigError(
                f"training.best is {self.training.best}, but held-out samples are of "
                f"{', '.join(sources)}: give one of these (or SOURCE_text for its plain texts)"
            )

    def _check_router_learns(self, stage: Stage) -> None:
        router = self.model.router
        if stage.trains != "router":
            return
        what = f"stages[{stage.name}].trains is router, but "
        if not router.decouple:
            raise ConfigError(
                f"{what}model.router.decouple is false: the attention's own keys route, and there "
                "is no router to train; give trains all"
            )
        if not stage.router_weight and (router.gate == "none" or not self.model.reading_layers):
            raise ConfigError(
                f"{what}its router_weight is 0, and without a gate in a layer that reads "
                "(model.router.gate, reads) no other loss reaches the router: give a router_weight"
            )

    @property
    def path(self) -> Path:
        return Path(self.output)

    @property
    def shards(self) -> str:
        """Folder or URL of the run's shards."""
        return self.training.shards or str(self.path / "shards")

    @property
    def held_out_shards(self) -> str:
        """Folder or URL of the held-out samples: the output's own, or what lies beside its shards,
        where those are another run's."""
        own, shards = self.path / "held_out", self.training.shards
        if shards is None or own.exists():
            return str(own)
        if "://" in shards:
            return f"{shards.rstrip('/').rpartition('/')[0]}/held_out"
        return str(Path(shards).parent / "held_out")

    @property
    def manifest_folder(self) -> Path:
        """Where this machine has the shards' manifest (behind a URL: once training has begun)."""
        return self.path / "shard-cache" if "://" in self.shards else Path(self.shards)

    @cached_property
    def corpus(self) -> TrainingCorpus:
        """What the shards are built from: the stages that have samples of their own."""
        size = self.training.batch_samples
        built = tuple(stage.amount(size) for stage in self.stages if not stage.draws_from)
        return TrainingCorpus(self.data, built, size)

    def drawn_stages(self, stage: Stage) -> list[int]:
        """Which stages of the corpus a stage with draws_from draws from."""
        built = [each.name for each in self.stages if not each.draws_from]
        return [built.index(name) for name in stage.draws_from]

    @cached_property
    def held_out(self) -> TrainingCorpus:
        """Samples that training does not see, from the data of the last stage."""
        return self.corpus.held_out(self.training.held_out_samples)

    def save(self, path: Path) -> None:
        files.replace_file(path, yaml.safe_dump(to_plain(self), sort_keys=False))


def to_plain(config: Any) -> Any:
    """A dataclass as dicts and lists that YAML and JSON can hold."""
    return json.loads(json.dumps(asdict(config)))


def load_config(arguments: list[str]) -> Config:
    """Config of `--config FILE --dotted.key value ...`; of several files a later one wins, key by
    key. Raises ConfigError, naming the file or the key."""
    parser = ArgumentParser(exit_on_error=False, prog="msa", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Config, nested_key=None, sub_configs=False)
    _check_files(arguments)
    try:
        chosen = vars(parser.instantiate(parser.parse_args(arguments)))
        return Config(**{name: value for name, value in chosen.items() if name != "config"})
    except ArgumentError as error:
        raise ConfigError(_in_plain_words(error)) from None


def _check_files(arguments: list[str]) -> None:
    """Raises ConfigError for a --config file that is not there, or not UTF-8: the parser would name
    neither."""
    paths = [value for flag, value in pairwise(arguments) if flag == "--config"]
    paths += [given.removeprefix("--config=") for given in arguments if given[:9] == "--config="]
    for path in map(Path, paths):
        if not path.is_file():
            what = "a folder; give a YAML file" if path.is_dir() else "no such file"
            raise ConfigError(f"--config {path}: {what}")
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--config {path}: not UTF-8: {error}; convert the file") from error


def load_config_file(path: Path) -> Config:
    return load_config(["--config", str(path)])


def _in_plain_words(error: Exception) -> str:
    """The parser's message with names of YAML's kinds instead of Python's types."""
    text = str(error).replace("typing.Literal", "choice of ")
    if re.search(r"training\b.*\bpipeline_parallel\b", text):
        return f"there is no training.pipeline_parallel: {_PIPELINE}"
    text = re.sub(r"Problem with given class_path '[\w.]+':\s*", "", text)
    for kind, plain in _KINDS.items():
        text = text.replace(f"a <class '{kind}'>", plain)
    return re.sub(
        r'Parser key "([\w.]+)":\s*Expected a dot import path string: (\w+)',
        r"--\1.\2: \1 is a list, which is given whole, as in --\1 '[{...}]', or in the YAML",
        text,
    )


if __name__ == "__main__":  # python -m msa_train.config FILE [--dotted.key value]: show it resolved
    yaml.safe_dump(to_plain(load_config(sys.argv[1:])), sys.stdout, sort_keys=False)
