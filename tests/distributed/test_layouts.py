"""A checkpoint goes on under other ranks, ZeRO stages and tensor parallelism, as if nothing had
changed."""

import math

import pytest
import torch

from msa_train.config import load_config
from msa_train.model.weights import published_weights
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import go_on, logged, settings
from tests.pretend.aio import pretend_aio

# Of a loss, in float32. What ranks add up in another order differs in the last bits of a sum, and
# in four steps that becomes at most 2e-7 here; a lost moment or a sample read twice is 1e-3.
LOSS = 1e-6
BEFORE, AFTER = 0, 1
MOMENTS = ("exp_avg", "exp_avg_sq")


def at(ranks, end, zero=1, tensor=1, **more):
    """A part of a run: so many ranks, to this step."""
    how = {"training__zero_stage": zero, "training__tensor_parallel": tensor}
    return ranks, end, how | {f"training__{key}": value for key, value in more.items()}


def held(trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Weights in full precision and what AdamW keeps, as DeepSpeed gathers them; the queue."""
    from deepspeed.utils import safe_get_full_optimizer_state

    engine, optimizer = trainer.engine, trainer.engine._engine.optimizer
    if engine._stage in (1, 2):  # which DeepSpeed linked before there was any state
        for parameter in engine._learned:
            if parameter._hp_mapping is not None:
                parameter._hp_mapping.optim_fragment = None
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    found = {"weight": dict(engine.full_weights()), "queue": engine.model.queue.state_dict()}
    for key in MOMENTS:
        found[key] = {
            name: optimizer.state[p][key].clone()
            if engine._stage == 0
            else safe_get_full_optimizer_state(p, key).view(found["weight"][name].shape)
            for p, name in engine._learned.items()
        }
    inner = optimizer if engine._stage == 0 else optimizer.optimizer
    found["step"] = {float(state["step"]) for state in inner.state.values()}
    return found


def swapping(given, look):
    """go_on, where DeepSpeed writes and reads what it is told to swap; nothing of that stays."""
    from msa_train.training import swap_files

    pretend_aio()
    found = go_on(given, look)
    swap_files.remove()
    return found


class Runs:
    """Runs in parts; parts with equally many ranks and equal tensor parallelism share a start."""

    def __init__(self, root, runs: dict[str, list], settled: dict[str, dict]):
        self.root, self.runs, self.settled = root, runs, settled
        self.held: dict[str, list] = {name: [] for name in runs}
        left = {name: list(parts) for name, parts in runs.items()}
        while waiting := [name for name in left if left[name]]:
            kinds = [self._kind(left[name][0]) for name in waiting]
            kind = max(kinds, key=kinds.count)
            chosen = [name for name, each in zip(waiting, kinds, strict=True) if each == kind]
            self._go(kind, {name: left[name].pop(0) for name in chosen})

    def _kind(self, part):
        return part[0], part[2]["training__tensor_parallel"]

    def arguments(self, name, how):
        shards = {"training__shards": self.root / "shards", "training__batch_samples": 4}
        given = settings(self.root / name, **shards, **self.settled.get(name, {}), **how)
        return [each.replace("DISK", str(self.root)) for each in given]

    def _go(self, kind, parts):
        given = [(self.arguments(name, how), end) for name, (_, end, how) in parts.items()]
        ranks = run_ranks(kind[0], swapping, given, held)[: kind[1]]  # the first data-parallel one
        for name, *of_rank in zip(parts, *ranks, strict=True):
            self.held[name].append(of_rank)

    def whole(self, name, part, when, what):
        """Published name -> weight or moment, BEFORE or AFTER a part."""
        config = load_config(self.arguments(name, {})).model
        shards = [rank[when][what] for rank in self.held[name][part]]
        return dict(published_weights(shards, config))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from data_pipeline.shards.build import build_shards

    folder = tmp_path_factory.mktemp("layouts")
    corpus = load_config(settings("unused", training__batch_samples=4)).corpus
    build_shards(corpus, folder / "shards", workers=1)
    return folder


OPTIMIZER = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
BOTH = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
BOTH = {"zero_optimization": BOTH | {"sub_group_size": 1000}}
NVME = {"offload_optimizer": {"device": "nvme", "nvme_path": "DISK"}, "sub_group_size": 5000}
NVME = {"zero_optimization": NVME, "aio": {"block_size": 4096}}  # what is shorter is not swapped
QUEUE = "[{name: main, steps: 4, lr: 1e-2, router_weight: 1, queue_documents: 40}]"
ROUTER = "[{name: main, steps: 4, lr: 1e-2, router_weight: 1, trains: router}]"
SETTLED = {"router": {"stages": ROUTER}, "router alone": {"stages": ROUTER}}
SETTLED |= {"queue": {"stages": QUEUE}, "bf16": {"training__precision": "bf16"}}
QUICK = {
    "chain": [at(2, 1, 1), at(1, 2, 3), at(2, 4, 2, tensor=2)],
    "files": [at(2, 1, 3, deepspeed=NVME), at(1, 2, 3, deepspeed=NVME), at(2, 4, 2, tensor=2)],
    "alone": [at(1, 4)],
}
WHOLE = {
    "down and up": [at(4, 1, 1), at(2, 2, 2), at(1, 3, 3), at(2, 4, 1)],
    "stages": [at(2, 1, 3), at(2, 2, 0), at(2, 3, 1), at(2, 4, 2)],
    "tensor": [
        at(4, 1, 3, tensor=2), at(2, 2, 0), at(4, 3, 0, tensor=2, sequence_parallel=True),
        at(2, 4, 3),
    ],
    "offloaded": [
        at(2, 1, 2, deepspeed=OPTIMIZER), at(4, 2, 3, deepspeed=BOTH), at(1, 3, 3, deepspeed=BOTH),
        at(2, 4, 3),
    ],
    "files": [
        at(2, 1, 2), at(2, 2, 3, deepspeed=NVME), at(2, 3, 3, deepspeed=NVME),
        at(4, 4, 3, deepspeed=NVME),
    ],
    "documents": [at(2, 1, 2, document_parallel=2), at(4, 2, 1, document_parallel=2), at(2, 4, 3)],
    "bf16": [at(2, 1, 2, tensor=2), at(2, 2, 3), at(2, 3, 1), at(4, 4, 3)],
    "router": [at(2, 1, 0, tensor=2), at(4, 2, 3), at(2, 3, 3, tensor=2), at(1, 4, 1)],
    "queue": [at(2, 1, 2), at(1, 4, 1)],
    "alone": [at(1, 4)],
    "router alone": [at(1, 4)],
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(root):
    return Runs(root, QUICK, SETTLED)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "shards").symlink_to(root / "shards")
    return Runs(folder, WHOLE, SETTLED)


def check_states(runs, name):
    """To the last bit what the ranks before had, weights and moments; the step is counted on."""
    for part in range(1, len(runs.runs[name])):
        for what in ("weight", *MOMENTS):
            was = runs.whole(name, part - 1, AFTER, what)
            now = runs.whole(name, part, BEFORE, what)
            assert was.keys() == now.keys()
            for key in was:
                assert torch.equal(was[key], now[key]), (part, what, key)
        steps = [rank[BEFORE]["step"] for rank in runs.held[name][part]]
        assert steps == [{runs.runs[name][part - 1][1]}] * len(steps)


def check_losses(runs, name, alone):
    ours, expected = logged(runs.root / name), logged(runs.root / alone)
    assert [row["step"] for row in ours] == [1, 2, 3, 4]
    for a, b in zip(ours, expected, strict=True):
        for key in ("loss/lm", "loss/router"):
            assert a[key] == pytest.approx(b[key], rel=LOSS), (key, a["step"])


@pytest.mark.parametrize("name", ["chain", "files"])
def test_every_weight_and_moment_comes_over(quick, name):
    check_states(quick, name)


@pytest.mark.parametrize("name", ["chain", "files"])
def test_losses_are_those_of_the_run_that_never_changed(quick, name):
    check_losses(quick, name, "alone")


def test_nothing_stays_in_the_folder_of_states(quick):
    assert not list(quick.root.glob("*msa-train-*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WHOLE if "alone" not in name])
def test_every_chain_of_layouts(whole, name):
    check_states(whole, name)
    if name not in ("bf16", "queue"):
        check_losses(whole, name, "router alone" if name == "router" else "alone")


@pytest.mark.slow
def test_half_precision_keeps_its_master_weights(whole):
    weights = whole.whole("bf16", 3, BEFORE, "weight")
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())


@pytest.mark.slow
def test_a_key_queue_takes_over_the_newest_documents_of_each(whole):
    """Two ranks had up to 40 each; the one of now has as many as one of them."""
    ((before,), (after,)) = whole.held["queue"]
    was, now = before[AFTER]["queue"], after[BEFORE]["queue"]
    own = math.ceil(len(was["ids"]) / 2)
    assert len(was["ids"]) == 24 and set(was["ids"][-own:].tolist()) <= set(now["ids"].tolist())
    assert own < len(now["ids"]) <= 24
