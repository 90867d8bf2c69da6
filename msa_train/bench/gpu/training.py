"""Parts `train-...`: what a training step costs, beside its arithmetic and the memory it must hold.

One bank of documents, asked by some contexts; random weights and tokens. FLOPs are the model's own:
what is computed again to save memory counts for nothing, as in MFU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from msa_train.bench.floor import Floor, encode_flops
from msa_train.bench.gpu.models import random_reader
from msa_train.bench.gpu.results import Measured, Row, measured, rounded
from msa_train.bench.gpu.sizes import BatterySizes
from msa_train.bench.kernels.cases import device
from msa_train.bench.runner import in_turns, process_bytes
from msa_train.hardware import named_as
from msa_train.model.batch import IGNORE, MemoryBatch
from msa_train.model.config import ModelConfig, Recompute
from msa_train.model.ops import uses_liger
from msa_train.model.weights import weight_shapes

RECOMPUTE: dict[Recompute, str] = {  # how rows say it; what fits first
    "layer": "recomputing layers", "attention": "recomputing attention",
    "none": "keeping everything",
}  # fmt: skip
_TOP = 12  # of a profile


def planned(sizes: BatterySizes) -> list[tuple[str, str]]:
    found = []
    for what, _, _ in _steps(sizes):
        found += [(f"{what}: whole step", "TFLOP/s"), (f"{what}: peak memory", "GB")]
    what, _, _ = _steps(sizes)[-1]
    found.append((f"{what}: without DeepSpeed and optimizer", "TFLOP/s"))
    return [*found, (f"{what}: profile of a step", "ms")]


def rows(sizes: BatterySizes, geometry: str) -> Iterator[Row]:
    """Steps of the largest bank, recomputing more or less; a small one, and what it is made of."""
    from msa_train.parallel import groups

    torch.manual_seed(0)
    groups.start(tensor_parallel=1, timeout_s=60)
    config = sizes.geometry(geometry)
    if geometry == "4B":
        config = replace(config, layers=sizes.layers)
    for what, tokens, recompute in _steps(sizes):
        bench = _Step(config, tokens, recompute, sizes)
        yield measured(f"{what}: whole step", "TFLOP/s", bench.rate)
        yield measured(f"{what}: peak memory", "GB", bench.memory)
    yield measured(f"{what}: without DeepSpeed and optimizer", "TFLOP/s", bench.bare_rate)
    yield measured(f"{what}: profile of a step", "ms", bench.profiled)


def _steps(sizes: BatterySizes) -> list[tuple[str, int, Recompute]]:
    """(what a row says, memory tokens, what is recomputed)."""
    small, large = min(sizes.trained), max(sizes.trained)
    chosen: list[tuple[int, Recompute]] = [*((large, how) for how in RECOMPUTE), (small, "none")]
    return [(f"{tokens:,} memory tokens, {RECOMPUTE[how]}", tokens, how) for tokens, how in chosen]


def step_flops(config: ModelConfig, batch: MemoryBatch) -> float:
    """Multiplications and additions of a step's forward and backward pass: three times those of the
    forward pass. Chunks that contexts attend to are left out."""
    shapes = weight_shapes(config)
    matrices = (
        math.prod(shape)
        for name, shape in shapes.items()
        if ".layers." in name and len(shape) == 2 and ".router_" not in name
    )
    contexts = 2 * sum(matrices) * len(batch.tokens)
    pairs = sum(n * (n + 1) // 2 for n in batch.ctx_cu.diff().tolist())
    contexts += 4 * config.heads * config.head_dim * pairs * config.layers
    head = 2 * config.hidden * config.vocab_size * batch.label_count
    return 3.0 * (encode_flops(config, batch.doc_cu.diff().tolist()) + contexts + head)


def random_batch(config: ModelConfig, tokens: int, contexts: int, each: int) -> MemoryBatch:
    """A bank of `tokens` tokens in documents of `each`, asked by contexts with one positive."""
    from msa_train.bench.train import ASKED, CONTEXT, bank_batch

    documents = tokens // each
    drawn = torch.randint(config.vocab_size, (contexts, CONTEXT))
    labelled = torch.arange(CONTEXT) >= ASKED
    positives = torch.zeros(contexts, documents, dtype=torch.bool)
    positives[torch.arange(contexts), torch.randint(documents, (contexts,))] = True
    return bank_batch(
        torch.randint(config.vocab_size, (documents, each)),
        drawn,
        torch.where(labelled, drawn, IGNORE),
        positives,
        config.router.top_k,
    )


class _Step:
    """One step of one model, measured in a few ways."""

    def __init__(self, config: ModelConfig, tokens: int, recompute: Recompute, sizes: BatterySizes):
        from msa_train.config import TrainingConfig

        self._config, self._sizes = config, sizes
        self._device = device()
        narrow = self._device.type == "cuda"
        self._dtype = torch.bfloat16 if narrow else torch.float32
        precision = "bf16" if narrow else "fp32"
        self._settings = TrainingConfig(zero_stage=1, precision=precision, recompute=recompute)
        self._batch = random_batch(config, tokens, sizes.contexts, sizes.document_tokens)
        self._peak: int | None = None

    def rate(self) -> Measured:
        """Forward, backward and optimizer under DeepSpeed, on one rank."""
        step, cuda = self._stepper(), self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        found = self._rate(step)
        self._peak = torch.cuda.max_memory_allocated() if cuda else process_bytes()["peak"]
        return found

    def memory(self) -> Measured:
        """Of the step that was timed."""
        if self._peak is None:
            raise RuntimeError("the step itself failed")
        kept = self._predicted()
        return Measured(self._peak / 1e9, kept / 1e9, "beside states and activations as estimated")

    def _predicted(self) -> int:
        from msa_train.training.activations import Activations

        batch, itemsize = self._batch, self._dtype.itemsize
        fused = uses_liger(torch.empty(0, device=self._device, dtype=self._dtype))
        kept = Activations(self._config, itemsize, fused).kept(
            self._settings.recompute, len(batch.doc_tokens), len(batch.tokens)
        )
        return state_bytes(self._config) + kept

    def bare_rate(self) -> Measured:
        """Forward and backward of the plain module."""
        model = self._model().to(self._device, self._dtype).train()
        batch = self._batch.to(self._device)

        def step() -> None:
            losses = model(batch)
            (losses.lm + losses.router).backward()
            model.zero_grad()

        return self._rate(step)

    def profiled(self) -> Measured:
        """Where the time of a step goes: kernels by their own time."""
        step, cuda = self._stepper(), self._device.type == "cuda"
        step()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=kinds) as found:
            step()
        own = "self_device_time_total" if cuda else "self_cpu_time_total"
        times = {each.key: getattr(each, own) / 1e3 for each in found.key_averages()}
        top = sorted(times.items(), key=lambda item: -item[1])[:_TOP]
        detail = tuple((name[:80], rounded(ms)) for name, ms in top if ms)
        return Measured(sum(times.values()), self._floor_ms(), "all kernels together", detail)

    def _rate(self, step: Callable[[], Any]) -> Measured:
        ms = median(in_turns({"step": step}, min(3, self._sizes.repeats))["step"])
        flops, floor = step_flops(self._config, self._batch), Floor.of(self._dtype)
        note = f"{ms:.1f} ms, {len(self._batch.doc_tokens) / ms * 1e3:,.0f} memory tokens/s"
        cuda = self._device.type == "cuda"
        card = named_as(torch.cuda.get_device_name()) if cuda else None
        if card is not None and card.flops:
            note += f", MFU {flops / ms * 1e3 / card.flops:.1%} of the data sheet's peak"
        return Measured(flops / ms / 1e9, floor.flops_per_ms / 1e9, note)

    def _floor_ms(self) -> float:
        return step_flops(self._config, self._batch) / Floor.of(self._dtype).flops_per_ms

    def _model(self) -> Any:
        from msa_train.model.megatron import MSAModel

        model = MSAModel(self._config, recompute=self._settings.recompute)
        model.load_published(random_reader(self._config, self._device, torch.float32))
        return model

    def _stepper(self) -> Callable[[], None]:
        from msa_train.training.engine import Engine
        from msa_train.training.gradient_cache import GradientCache

        engine = Engine(self._model(), self._settings)
        gradients, batch = GradientCache(engine, None), self._batch.to(self._device)
        labels, contexts = batch.label_count, batch.routed_context_count

        def step() -> None:
            engine.set_learning_rate(1e-6)
            gradients.backward(batch, lambda each: each.lm / labels + each.router / contexts)
            engine.step()

        return step


def state_bytes(config: ModelConfig) -> int:
    """Of weights, gradients and AdamW's states on one rank, 16 a weight: in bf16 two each of weight
    and gradient and twelve of the optimizer's float32; four of each in float32."""
    return 16 * sum(math.prod(shape) for shape in weight_shapes(config).values())
