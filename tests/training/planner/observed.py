"""Steps of a small model on gloo ranks under DeepSpeed: what they send and allocate, counted by
torch alone."""

from __future__ import annotations

import gc
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msa_train.bench.runner import in_use
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

_OPERATIONS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "allgather_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


def batch(seed: int = 0):
    return random_batch([DOCUMENTS], CONTEXTS, MODEL, seed=seed)


class Counted(TorchDispatchMode):
    """payload: bytes of the whole tensors that collectives of more than one rank are given; calls:
    of any size. most: in use after any operation."""

    def __init__(self):
        super().__init__()
        self.payload: Counter[str] = Counter()
        self.most = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            size = max((_bytes(each) for each in args), default=0)
            together = name != "barrier" and not _alone(args)
            self.calls += together
            if together and size > SCALAR:
                self.payload[_OPERATIONS.get(name, name)] += size
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, in_use())
        return result


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


def observe(
    tensor: int, runs: dict[str, tuple[dict, int]], documents: int = 1, bucket: int = BUCKET
) -> dict[str, dict]:
    """On a rank: of every run (settings of training, samples of a step) what its last step sent,
    what it found allocated, and what was at most."""
    from msa_train.parallel import groups
    from msa_train.training.planner import memory

    memory.BUCKET = bucket
    groups.start(tensor, 120, documents)
    _warm_up({settings.get("precision", "fp32") for settings, _ in runs.values()})
    return {name: _run(*given) for name, given in runs.items()}


def _warm_up(precisions: set[str]) -> None:
    """What libraries allocate once, and keep."""
    for precision in precisions:
        _train(TrainingConfig(precision=precision), 1)


def _run(training: dict, samples: int) -> dict:
    gc.collect()
    before = in_use()
    payload, held, most = _train(TrainingConfig(**training), samples)
    return {"payload": payload, "held": held - before, "most": most - before}


def meetings(runs: dict[str, dict]) -> dict[str, int]:
    """On a rank: of every run (settings of training) how often all ranks met while the first of a
    step's two samples was read; in the second step."""
    from msa_train.parallel import groups

    groups.start(1, 240)
    return {name: _meetings(TrainingConfig(**settings)) for name, settings in runs.items()}


def _meetings(settings: TrainingConfig) -> int:
    engine, gradients = _engine(settings)

    def read() -> int:
        with Counted() as counted:
            gradients.backward(batch(), lambda losses: losses.lm + losses.router)
        return counted.calls

    for _ in range(2):
        first, _ = read(), read()
        engine.set_learning_rate(1e-3)
        engine.step()
    return first


def _engine(settings: TrainingConfig):
    """An engine with the model, and what computes its gradients."""
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel.documents import DocumentGroup
    from msa_train.training.engine import Engine
    from msa_train.training.gradient_cache import GradientCache

    model = MSAModel(MODEL, settings.recompute, settings.sequence_parallel)
    model.load_published(initial_reader(MODEL, 0))
    engine = Engine(model, settings)
    group = DocumentGroup.of(settings.document_parallel, settings.timeout_s)
    model.shards = group if settings.pooled_states == "sharded" else None
    return engine, GradientCache(engine, settings.gradient_cache_tokens, group)


def _train(settings: TrainingConfig, samples: int) -> tuple[dict[str, int], int, int]:
    """Three steps; returns what the third sent, found in use, and had in use at most. By then
    DeepSpeed knows the order of weights."""
    engine, gradients = _engine(settings)
    group = gradients.documents
    batches = [batch(seed).share(group.rank, group.size) for seed in range(samples)]

    def step() -> None:
        for each in batches:
            gradients.backward(each, lambda losses: losses.lm + losses.router)
        engine.set_learning_rate(1e-3)
        engine.step()

    step()
    step()
    gc.collect()
    held = in_use()
    with Counted() as counted:
        step()
    return dict(counted.payload), held, counted.most


def layout_of(tensor: int, settings: dict):
    """The planner's word for such a run on two ranks."""
    from msa_train.training.planner.layout import Layout

    return Layout(
        tensor=tensor, replicas=2 // tensor, zero=settings.get("zero_stage", 1),
        recompute=settings.get("recompute", "none"), cache=settings.get("gradient_cache_tokens"),
        sequence=settings.get("sequence_parallel", False),
    )  # fmt: skip
