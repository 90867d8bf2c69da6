"""One table of layouts and one of cases: what every layout must compute as one rank does.

Each run is real: DeepSpeed's engine under the trainer's own settings, the gradient cache and the
document group, but with plain gradient descent, whose steps do not hide how large a gradient was.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import pytest
import torch
import torch.distributed as dist

from msa_train.model.config import ModelConfig
from tests.batches import CONTEXTS, OWN_ROUTER, RAGGED, VOTING_ROUTER, random_batch, tiny_config
from tests.distributed.ranks import run_ranks

STEPS, RATE = 5, 0.02
LIMIT = 1800  # seconds of all runs of a start
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CPU = {"device": "cpu"}


@dataclass(frozen=True)
class Spread:
    """How a run is spread: settings of training, on so many ranks."""

    ranks: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def tensor(self) -> int:
        return self.settings.get("tensor_parallel", 1)

    @property
    def zero(self) -> int:
        return self.settings.get("zero_stage", 0)


def _offload(stage: int, *parts: str) -> dict[str, Any]:
    zero = {f"offload_{part}": CPU for part in parts}
    return {"zero_stage": stage, "deepspeed": {"zero_optimization": zero}}


TP, SP = {"tensor_parallel": 2}, {"tensor_parallel": 2, "sequence_parallel": True}
SHARDED = {"pooled_states": "sharded"}
ALONE = Spread(1)
LAYOUTS = {
    "ZeRO-1": Spread(2, {"zero_stage": 1}),
    "ZeRO-2": Spread(2, {"zero_stage": 2}),
    "ZeRO-3": Spread(2, {"zero_stage": 3}),
    "ZeRO-2, optimizer offloaded": Spread(2, _offload(2, "optimizer")),
    "ZeRO-3, optimizer and weights offloaded": Spread(2, _offload(3, "optimizer", "param")),
    "TP 2": Spread(2, TP),
    "TP 2 + SP": Spread(2, SP),
    "documents 2": Spread(2, {"document_parallel": 2}),
    "documents 2, sharded": Spread(2, {"document_parallel": 2} | SHARDED),
    "documents 4": Spread(4, {"document_parallel": 4}),
    "documents 4, sharded": Spread(4, {"document_parallel": 4} | SHARDED),
    "TP 2 x documents 2": Spread(4, TP | {"document_parallel": 2}),
    "TP 2 x documents 2, sharded": Spread(4, TP | {"document_parallel": 2} | SHARDED),
    "TP 2 + SP x documents 2": Spread(4, SP | {"document_parallel": 2}),
    "TP 2 + SP x ZeRO-3": Spread(4, SP | {"zero_stage": 3}),
    "TP 4 + SP": Spread(4, {"tensor_parallel": 4, "sequence_parallel": True}),
    "ZeRO-2 x documents 2": Spread(4, {"document_parallel": 2, "zero_stage": 2}),
    "ZeRO-3 x documents 2": Spread(4, {"document_parallel": 2, "zero_stage": 3}),
}


@dataclass(frozen=True)
class Case:
    """What a step is made of. samples: of all ranks together. silent: samples without a positive;
    bare: samples without a document. without: contexts without a positive, in every sample."""

    banks: list[list[int]] = field(default_factory=lambda: RAGGED)
    contexts: list[tuple[int, int]] = field(default_factory=lambda: CONTEXTS)
    samples: int = 2
    silent: tuple[int, ...] = ()
    bare: tuple[int, ...] = ()
    without: tuple[int, ...] = ()
    doc_labels: bool = False
    settings: dict[str, Any] = field(default_factory=dict)  # of training
    router: dict[str, Any] = field(default_factory=dict)
    gate: str = "threshold"
    queue: int = 0
    heads: tuple[int, int] = (8, 4)

    @property
    def model(self) -> ModelConfig:
        heads, groups = self.heads
        return replace(tiny_config(self.gate, **self.router), heads=heads, kv_heads=groups)

    def batch(self, sample: int):
        banks = [[] for _ in self.banks] if sample in self.bare else self.banks
        found = random_batch(banks, self.contexts, self.model, sample, doc_labels=self.doc_labels)
        if sample in self.silent:
            found.positives[:] = False
        found.positives[list(self.without)] = False
        return found


CACHED = {"gradient_cache_tokens": 20}  # four groups of the ragged banks, two of half of them
FOUR = {"key_heads": 4}  # which four tensor-parallel ranks can divide
CASES = {
    "ragged banks": Case(),
    "recompute attention": Case(settings={"recompute": "attention"}),
    "recompute layer": Case(settings={"recompute": "layer"}),
    "gradient cache": Case(settings=CACHED),
    "cache and recompute": Case(settings=CACHED | {"recompute": "layer"}),
    "accumulation": Case(samples=4, settings=CACHED),
    "a share without a positive": Case(silent=(1,), without=(1, 2, 3, 4)),
    "a rank without documents": Case(banks=[[11]], contexts=[(0, 5), (0, 9)], bare=(1,)),
    "no documents at all": Case(banks=[[]], contexts=[(0, 5), (0, 9)]),
    "one context": Case(RAGGED[:1], [(0, 9)], settings=CACHED),
    "three kv heads": Case(heads=(6, 3)),
    "labels of documents": Case([[4, 9, 2], [7]], [(0, 9), (1, 6)], doc_labels=True),  # 43 tokens
    "coupled router": Case(router={"decouple": False}),
    "router of its own shape": Case(router=OWN_ROUTER | FOUR),
    "router that votes": Case(router=VOTING_ROUTER | FOUR, settings=CACHED),
    "scores by head": Case(gate="none", router={"head_reduce": "max"}),
    "key queue": Case(queue=20),
}

# Of four ranks, which are slow, and put together what two have in every case.
WIDE = {
    "ragged banks", "recompute attention", "cache and recompute", "accumulation",
    "a share without a positive", "a rank without documents", "three kv heads",
    "router of its own shape",
}  # fmt: skip
# In single precision, too; the others would say no more there.
SINGLE = {
    "ragged banks", "recompute attention", "recompute layer", "gradient cache", "accumulation",
    "a share without a positive", "a rank without documents", "three kv heads",
}  # fmt: skip
SINGLE_WIDE = {"ragged banks", "cache and recompute"}


def refused(spread: Spread, name: str) -> str | None:
    """Why a case has no such layout: the settings refuse it, or it would say nothing new."""
    case = CASES[name]
    documents = spread.settings.get("document_parallel", 1)
    replicas = spread.ranks // spread.tensor // documents
    if case.model.kv_heads % spread.tensor:
        return "kv heads that the tensor-parallel ranks do not divide"
    if spread.tensor > 1 and not case.model.router.scoring.tensor_parallel:
        return "reductions that tensor parallelism does not have"
    if spread.ranks == 4 and name not in WIDE:
        return "four ranks, which put together what two have in this case, too"
    if name == "accumulation" and replicas == 1:
        return "one replica, which accumulates both samples of every case"
    if case.queue and (replicas > 1 or spread.settings.get("pooled_states") == "sharded"):
        return "each group of ranks has a queue of its own; sharded states have none"
    if case.doc_labels and documents > 1:
        return "labels of documents that ranks share"
    return None


def cases_of(spread: Spread) -> list[str]:
    return [name for name in CASES if refused(spread, name) is None]


Run = tuple[str, str, str]  # layout ("" alone), case, dtype


def runs_of(layouts: Iterable[str]) -> Iterator[Run]:
    """Every case that each of them has."""
    for layout in layouts:
        single = SINGLE if LAYOUTS[layout].ranks < 4 else SINGLE_WIDE
        for case in cases_of(LAYOUTS[layout]):
            yield layout, case, "float64"
            if case in single:
                yield layout, case, "float32"


def alone(runs: Sequence[Run]) -> dict[Run, dict]:
    """Their cases on one rank."""
    cases = {("", case, dtype): None for _, case, dtype in runs}
    return run_ranks(1, all_runs, 1, list(cases), timeout_s=LIMIT)[0]


def on_ranks(runs: Sequence[Run]) -> dict[str, list[dict[Run, dict]]]:
    """Results of each rank, by layout; layouts with equal groups of ranks share a start."""
    found: dict[str, list] = {}
    used = [name for name in LAYOUTS if any(run[0] == name for run in runs)]
    for start in dict.fromkeys((LAYOUTS[name].ranks, LAYOUTS[name].tensor) for name in used):
        names = [name for name in used if (LAYOUTS[name].ranks, LAYOUTS[name].tensor) == start]
        chosen = [run for run in runs if run[0] in names]
        ranks = run_ranks(start[0], all_runs, start[1], chosen, timeout_s=LIMIT)
        found |= dict.fromkeys(names, ranks)
    return found


def all_runs(tensor: int, runs: list[Run]) -> dict[Run, dict]:
    """On a rank: what each run computed, of those of so many tensor-parallel ranks."""
    from deepspeed.accelerator import get_accelerator

    from msa_train.parallel import groups
    from msa_train.training import engine

    engine._optimizer, engine._settings = _descent, _untested(engine._settings)
    groups.start(tensor, 120)
    accelerator = get_accelerator()
    known = [*accelerator.supported_dtypes(), torch.float64]  # or stage 0 refuses to sum it
    accelerator.supported_dtypes = lambda: known
    return {run: _train(*run) for run in runs}


@contextmanager
def _in(dtype: torch.dtype, stage: int) -> Iterator[None]:
    """In double precision nothing is rounded to single on its way, as Megatron's cross entropy does
    and DeepSpeed where it sends gradients and keeps weights. ZeRO-2 and 3 send no other."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            if stage < 2:
                sent = property(lambda _: torch.float64)
                patch.setattr(DeepSpeedEngine, "communication_data_type", sent)
        yield


def _descent(model, config, reader_apart) -> torch.optim.Optimizer:
    """In groups like the trainer's, because a group is a flat share under ZeRO."""
    weights = list(model.parameters())
    groups = ([w for w in weights if (w.dim() == 2) == wide] for wide in (True, False))
    return torch.optim.SGD([{"params": group, "parts": ("all",)} for group in groups], lr=RATE)


def _untested(settings: Callable[..., dict]) -> Callable[..., dict]:
    return lambda *given: settings(*given) | {"zero_allow_untested_optimizer": True}


def _train(layout: str, name: str, dtype: str) -> dict:
    gc.freeze()  # or every engine's end looks through what the ends before it have left
    spread = LAYOUTS.get(layout, ALONE)
    with _in(DTYPES[dtype], spread.zero):
        return _trained(spread, CASES[name], DTYPES[dtype])


def _trained(spread: Spread, case: Case, dtype: torch.dtype) -> dict:
    """Five steps: of each its losses, gradient norm and what was routed; gradients of the first,
    weights after the last, by Megatron's name, of this tensor-parallel rank."""
    from msa_train.config import TrainingConfig
    from msa_train.model.megatron import MSAModel
    from msa_train.parallel.documents import DocumentGroup
    from msa_train.training.engine import Engine
    from msa_train.training.gradient_cache import GradientCache

    settings = TrainingConfig(**{"zero_stage": 0, "clip": 1e9} | spread.settings | case.settings)
    module = MSAModel(case.model, settings.recompute, settings.sequence_parallel)
    module.load_published(_untied(case.model))
    module = module.to(dtype)
    module.queue.limit = case.queue
    documents = DocumentGroup.of(settings.document_parallel, settings.timeout_s)
    if settings.pooled_states == "sharded":
        module.shards = documents
    engine = Engine(module, settings)
    gradients = Gradients(engine)
    cache = GradientCache(engine, settings.gradient_cache_tokens, documents)
    samples = range(documents.replica, case.samples, documents.replicas)
    shares = [case.batch(each).share(documents.rank, documents.size) for each in samples]
    steps, rows = [], set()
    module.decoder.final_layernorm.register_forward_hook(lambda _, __, y: rows.add(len(y)))
    for _ in range(STEPS):
        sums, routed = torch.zeros(2, dtype=torch.float64), {}
        for sample, batch in zip(samples, shares, strict=True):
            losses = cache.backward(batch, lambda each: (0.7 * each.lm + 0.3 * each.router) / 10)
            sums += torch.stack([losses.lm, losses.router]).detach().double()
            routed[sample] = _routed(batch, losses)
        engine.step()
        dist.all_reduce(sums, group=gradients.group)
        steps.append({"losses": sums.tolist(), "norm": gradients.norm(), "routed": routed})
    weights = {key: value.numpy() for key, value in engine.full_weights()}
    if settings.zero_stage == 0:  # in full precision
        weights = {key: value.detach().numpy() for key, value in module.named_parameters()}
    found = {"steps": steps, "gradients": gradients.first(), "weights": weights}
    engine._engine.destroy()
    tokens = len(shares[0].all_labels)
    return found | {"queue": module.queue.state_dict(), "rows": rows, "tokens": tokens}


def _untied(model: ModelConfig) -> Callable[[str], torch.Tensor]:
    """Initial weights, each off by its own tenth: router heads of a group start equal, and which of
    equals is a maximum, and has its gradient, a last bit decides."""
    from msa_train.model.weights import initial_reader

    read = initial_reader(model, 0)

    def untied(name: str) -> torch.Tensor:
        weight, draws = read(name), torch.Generator().manual_seed(crc32(name.encode()))
        return weight * (1 + 0.1 * torch.randn(weight.shape, generator=draws))

    return untied


def _routed(batch, losses) -> dict:
    """Contexts of this rank, and of each router layer their documents and scores."""
    own = slice(0, len(batch.ctx_bank)) if batch.own is None else batch.own.contexts
    layers = {
        layer: (routing.documents.numpy(), routing.document_scores.detach().numpy())
        for layer, routing in losses.routings.items()
    }
    return {"contexts": own, "layers": layers if own.start < own.stop else {}}


class Gradients:
    """What a step's update is given: seen where the optimizer takes it, summed over the ranks."""

    def __init__(self, engine):
        from msa_train.parallel.groups import DeepSpeedGroups

        self._engine, self._stage = engine, engine._stage
        self.group = DeepSpeedGroups.get_data_parallel_group()
        self._tensor = DeepSpeedGroups.get_tensor_model_parallel_group()
        self._steps: list[dict] = []
        self._pieces: dict = {}
        optimizer = engine._engine.optimizer
        self._zero = optimizer
        inner = optimizer if self._stage == 0 else optimizer.optimizer
        inner.register_step_pre_hook(self._see)
        real = engine.step

        def step():
            self._pieces = {}
            real()
            self._steps.append(self._pieces)

        engine.step = step

    def _see(self, inner, *_) -> None:
        """Pieces of gradients: (where it begins, numbers) by name."""
        from msa_train.training.engine import _cuts, _shares

        if self._stage == 0:
            for parameter, name in self._engine._learned.items():
                if parameter.grad is not None:
                    self._pieces[name] = [(0, parameter.grad.flatten().clone())]
            return
        if self._stage < 3:
            cuts = [list(_cuts(group)) for group in self._zero.bit16_groups]
            flat = self._zero.single_partition_of_fp32_groups
        else:
            cuts = [list(_shares(group)) for group in self._zero.fp16_groups]
            flat = self._zero.fp32_partitioned_groups_flat
        for group, share in zip(cuts, flat, strict=True):
            if share.grad is None:
                continue
            for parameter, here, there, count in group:
                piece = (there, share.grad[here : here + count].clone())
                self._pieces[self._engine._learned[parameter]] = [piece]

    def first(self) -> dict:
        """Whole gradients of the first step, of this tensor-parallel rank."""
        return {name: each.numpy() for name, each in self._whole(self._steps[0]).items()}

    def _whole(self, pieces: dict) -> dict:
        every: list = [pieces]
        if self._stage:
            every = [{}] * dist.get_world_size(self.group)
            dist.all_gather_object(every, pieces, group=self.group)
        found = {}
        for parameter, name in self._engine._learned.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            dtype = next((p.dtype for r in every for _, p in r.get(name, ())), torch.float32)
            whole = torch.zeros(shape.numel(), dtype=dtype)
            for rank in every:
                for there, piece in rank.get(name, ()):
                    whole[there : there + len(piece)] = piece
            found[name] = whole.view(shape)
        return found

    def norm(self) -> float:
        """Of the last step: DeepSpeed's own, or (stage 0, which has none) of the gradients."""
        if self._stage:
            return self._engine.gradient_norm()
        whole, total = self._whole(self._steps[-1]), torch.zeros((), dtype=torch.float64)
        for name, parameter in self._engine.model.named_parameters():
            once = parameter.tensor_model_parallel or dist.get_rank(self._tensor) == 0
            total += once * whole[name].double().square().sum()
        dist.all_reduce(total, group=self._tensor)
        return float(total.sqrt())
