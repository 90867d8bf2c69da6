"""What a rank says whose memory is full: what it was planned to hold, and what torch holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from msa_train.config import Config
from msa_train.errors import FullMemoryError, MSAError
from msa_train.hardware import RESERVE, available_memory, gb, own_memory
from msa_train.model.batch import MemoryBatch
from msa_train.model.ops import uses_liger
from msa_train.parallel.cpu import gpus
from msa_train.training.planner.layout import Layout, refusal, samples_of
from msa_train.training.planner.memory import RankBytes, needed, rank_bytes
from msa_train.training.planner.sizes import Given, SampleSize, stage_sizes
from msa_train.training.planner.weights import weights

_CPU = "can't allocate memory"  # torch's words where the CPU has no more
_GROUP = 4096  # of the gradient cache, as a proposal


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory is full: a GPU's, or the host's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _CPU in str(error)


def full_memory(error: BaseException, config: Config, batch: MemoryBatch | None) -> FullMemoryError:
    """What this rank has to say. batch: what it was training on (None: it had not begun)."""
    said = str(error).strip().splitlines()
    lines = [f"memory is full ({said[0] if said else type(error).__name__})"]
    try:
        lines += _planned(config, batch)
    except MSAError as problem:  # a layout or data that cannot be planned is no reason to be silent
        lines.append(f"no plan: {problem}")
    return FullMemoryError("\n  ".join([*lines, *_held()]))


def _planned(config: Config, batch: MemoryBatch | None) -> Iterator[str]:
    layout = Layout.of(config, dist.get_world_size())
    if batch is None:
        stages, _ = stage_sizes(config, Given())
        sample = max((each.sample for each in stages), key=lambda each: each.document_tokens)
    else:
        sample = SampleSize.of_batch(batch, layout.documents)
    yield (
        f"the sample: {sample.document_tokens:,} tokens of {sample.documents:,} documents, "
        f"{sample.context_tokens:,} of {sample.contexts:,} contexts; {layout.words()}"
    )
    found = _rank(config, layout, sample)
    places = {
        "device": "", "host": " in host memory", "writer": " in host memory of one rank",
        "nvme": " in files",
    }  # fmt: skip
    for place, words in places.items():
        for phase in ("held", "backward", "update"):
            mine = (each for each in found if (each.place, each.phase) == (place, phase))
            rows = [f"{each.what} {gb(each.bytes)}" for each in mine]
            if rows or place == "device":
                yield f"planned{words}, {phase}: {', '.join(rows) or 'nothing'}"
    reserve = f", and {gb(RESERVE)} beside torch" if gpus() else ""
    yield f"planned at most: {gb(needed(found))}{reserve}"
    lighter = ", ".join(_lighter(config, layout, sample, needed(found)))
    yield f"less would take: {lighter or 'none of the settings; more ranks, or smaller samples'}"


def _rank(config: Config, layout: Layout, sample: SampleSize) -> tuple[RankBytes, ...]:
    fused = uses_liger(torch.empty(0, device="cuda" if gpus() else "cpu"))
    held = weights(config.model, layout.tensor, frozenset(each.trains for each in config.stages))
    size = 2 if config.training.precision == "bf16" else 4
    samples = samples_of(config, layout)
    given = config.model, layout, held, sample, samples, size, fused
    return rank_bytes(*given, config.training.async_save)


def _lighter(config: Config, layout: Layout, sample: SampleSize, now: int) -> Iterator[str]:
    """Settings, one at a time, that take less than now, and that this run may have."""
    ways: dict[str, dict[str, Any]] = {
        "training.recompute attention": {"recompute": "attention"},
        "training.recompute layer": {"recompute": "layer"},
        f"training.gradient_cache_tokens {_GROUP}": {"cache": _GROUP},
        **{f"training.zero_stage {n}": {"zero": n} for n in range(layout.zero + 1, 4)},
    }
    if layout.tensor > 1 and not layout.sequence:
        ways["training.sequence_parallel true"] = {"sequence": True}
    if layout.replicas > 1:
        change = {"documents": layout.data, "replicas": 1}
        ways[f"training.document_parallel {layout.data}"] = change
    if layout.documents > 1 and not layout.sharded:
        ways["training.pooled_states sharded"] = {"sharded": True}
    if layout.zero and layout.offload == "none":
        ways["offload_optimizer {device: cpu} in training.deepspeed"] = {"offload": "optimizer"}
    for setting, change in ways.items():
        other = replace(layout, **change)
        if refusal(config, other) is None:
            size = needed(_rank(config, other, sample))
            if size < now:
                yield f"{setting} ({gb(size)})"


def _held() -> Iterator[str]:
    if gpus():
        now, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        reserved, (free, whole) = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()
        yield (
            f"torch: allocated {gb(now)}, at most {gb(most)}, reserved {gb(reserved)}; the GPU has "
            f"{gb(whole)}, {gb(free)} of it free"
        )
        return
    yield f"this process: allocated {gb(own_memory())}; {gb(available_memory())} are left here"
