"""Steps of a small model on gloo ranks under DeepSpeed: what they send and allocate, counted by
torch alone."""

from __future__ import annotations

import gc
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from msa_train.config import TrainingConfig
from msa_train.model.config import ModelConfig, RouterConfig
from tests.batches import random_batch

MODEL = ModelConfig(
    layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab_size=512,
    router=RouterConfig(top_k=2, chunk_size=16),
)  # fmt: skip
DOCUMENTS, CONTEXTS = [40] * 6, [(0, 13)] * 2
BUCKET = 300_000  # elements, that it is not most of what so small a model takes
SCALAR = 32  # bytes: norms and counts have fewer
CACHE = 80  # tokens of two documents
LAST = "the last step"

_OPERATIONS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


def batch(seed: int = 0):
    return random_batch([DOCUMENTS], CONTEXTS, MODEL, seed=seed)


class Counted(TorchDispatchMode):
    """Bytes of the whole tensors that collectives of more than one rank are given."""

    def __init__(self):
        super().__init__()
        self.payload: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            size = max((_bytes(each) for each in args), default=0)
            if name != "barrier" and size > SCALAR and not _alone(args):
                self.payload[_OPERATIONS.get(name, name)] += size
        return func(*args, **(kwargs or {}))


def _alone(args) -> bool:
    """Megatron also reduces over its group of one rank."""
    for each in args:
        if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each._type()):
            return torch.distributed.ProcessGroup.unbox(each).size() == 1
    return False


def _bytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def held_and_peak(events: list) -> tuple[int, int]:
    """Bytes allocated when the last step began, and at most during it, by the account of torch's
    CPU allocator."""
    live = held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
        elif event.name() == LAST:
            held = most = live
    return held, most


def observe(tensor: int, runs: dict[str, tuple[dict, int]]) -> dict[str, dict]:
    """On a rank: of every run (settings of training, samples of a step) what its last step sent,
    what it found allocated, and what was at most."""
    from msa_train.parallel import groups
    from msa_train.training.planner import memory

    memory.BUCKET = BUCKET
    groups.start(tensor_parallel=tensor, timeout_s=120)
    return {name: _run(*given) for name, given in runs.items()}


def _run(training: dict, samples: int) -> dict:
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.training.engine import Engine
    from msa_train.training.gradient_cache import GradientCache

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        payload = _train(TrainingConfig(**training), samples)
    held, most = held_and_peak(found.profiler.kineto_results.events())
    return {"payload": payload, "held": held, "most": most}


def _train(settings: TrainingConfig, samples: int) -> dict[str, int]:
    """Three steps; returns what the third sent. By then DeepSpeed knows the order of weights."""
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.training.engine import Engine
    from msa_train.training.gradient_cache import GradientCache

    model = MSAModel(MODEL, recompute=settings.recompute)
    model.load_published(initial_reader(MODEL, 0))
    engine = Engine(model, settings)
    gradients = GradientCache(engine, settings.gradient_cache_tokens)
    batches = [batch(seed) for seed in range(samples)]

    def step() -> None:
        for each in batches:
            gradients.backward(each, lambda losses: losses.lm + losses.router)
        engine.set_learning_rate(1e-3)
        engine.step()

    step()
    step()
    gc.collect()
    with record_function(LAST), Counted() as counted:
        step()
    return dict(counted.payload)


def layout_of(tensor: int, settings: dict):
    """The planner's word for such a run on two ranks."""
    from msa_train.training.planner.layout import Layout

    return Layout(
        tensor=tensor, replicas=2 // tensor, zero=settings.get("zero_stage", 1),
        recompute=settings.get("recompute", "none"), cache=settings.get("gradient_cache_tokens"),
    )  # fmt: skip
