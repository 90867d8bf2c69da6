"""Ranks that share a batch give the loss and the gradients of one rank that has it alone."""

import pytest
import torch
import torch.distributed as dist

from tests.batches import CONTEXTS, OWN_ROUTER, RAGGED, VOTING_ROUTER, random_batch, tiny_config
from tests.distributed.ranks import run_ranks

TWO = {"key_heads": 2}  # which two tensor-parallel ranks can divide
RUNS = {
    "ragged": {},
    "cached": {"group_tokens": 13},
    "one document": {"banks": [[11]], "contexts": [(0, 5), (0, 9)]},
    "one of each": {"banks": [[11]], "contexts": [(0, 9)]},
    "one of each, cached": {"banks": [[11]], "contexts": [(0, 9)], "group_tokens": 4},
    "one context": {"contexts": [(0, 9)], "group_tokens": 13},
    "no documents": {"banks": [[]], "contexts": [(0, 5), (0, 9)]},
    "several samples": {"seeds": (0, 1, 2)},
    "recomputed": {"recompute": "layer", "group_tokens": 13},
    "coupled": {"router": {"decouple": False}},
    "own shape": {"router": OWN_ROUTER | TWO},
    "votes": {"router": VOTING_ROUTER | TWO, "group_tokens": 9},
    "heads": {"gate": "none", "router": {"head_reduce": "max"}},
    "queue": {"seeds": (0, 1), "queue": 20},
    "one positive": {"contexts": [(0, 9), (1, 6), (0, 4)], "without": (1, 2)},
}


def all_steps(tensor_parallel: int, size: int, runs: list[dict], sharded: bool) -> list:
    """On each rank: losses and gradients of each run, whose batches `size` ranks share."""
    from msa_train.parallel import groups
    from msa_train.parallel.documents import DocumentGroup

    groups.start(tensor_parallel, 60, size)
    documents = DocumentGroup.of(size, 60)
    return [_step(documents, sharded, **run) for run in runs]


def _step(
    documents, sharded, banks=RAGGED, contexts=CONTEXTS, group_tokens=None, seeds=(0,), router=None,
    recompute="none", queue=0, without=(), gate="threshold",
):  # fmt: skip
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel.groups import sum_over_tensor_ranks
    from msa_train.training.gradient_cache import GradientCache

    config = tiny_config(gate, **(router or {}))
    module = MSAModel(config, recompute)
    module.load_published(initial_reader(config, 0))
    module = module.double()
    module.queue.limit = queue
    module.shards = documents if sharded else None
    sum_over_tensor_ranks(module.partial_gradient_parameters())
    engine = Summing(module, documents.group)
    cache = GradientCache(engine, group_tokens, documents)
    sums = torch.zeros(2, dtype=torch.float64)
    found = []
    for seed in seeds:
        batch = random_batch(banks, contexts, config, seed)
        batch.positives[list(without)] = False
        batch = batch.share(documents.rank, documents.size)
        losses = cache.backward(batch, lambda losses: 0.7 * losses.lm + 0.3 * losses.router)
        sums += torch.stack([losses.lm, losses.router]).detach().double()
        asks = documents.size == 1 or batch.own.contexts.start < batch.own.contexts.stop
        found.append([len(batch.doc_tokens), len(batch.tokens) * asks])
    if documents.group is not None:
        dist.all_reduce(sums, group=documents.group)
    return sums.tolist(), engine.gradients(), found, module.queue.state_dict()


class Summing:
    """What the engine does for a step, but without a mean: gradients are summed over the ranks."""

    keeps_graphs = True

    def __init__(self, module, group):
        self.module = self.model = module
        self.group = group

    def __call__(self, *args):
        return self.module(*args)

    def backward(self, loss, scaled=False):
        loss.backward()

    def max_over_ranks(self, count):
        counts = torch.tensor(count)
        if self.group is not None:
            dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=self.group)
        return int(counts)

    def gradients(self):
        found = {}
        for name, parameter in self.module.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if self.group is not None:
                dist.all_reduce(gradient, group=self.group)
            found[name] = gradient.numpy()
        return found


LAYOUTS = [
    (tensor, size, pooled)
    for tensor, size in ((1, 2), (1, 4), (2, 2))
    for pooled in ("gathered", "sharded")
]


def runs_of(tensor_parallel: int, pooled: str) -> dict[str, dict]:
    """By name. Sharded states have no queue, scores by head no tensor parallelism."""
    left_out = ["queue"] * (pooled == "sharded") + ["heads"] * (tensor_parallel > 1)
    return {name: run for name, run in RUNS.items() if name not in left_out}


@pytest.fixture(scope="module")
def found():
    """(tensor-parallel, document-parallel, pooled states) -> results of all ranks, by run; made
    when first asked for."""
    known = {}

    def of(tensor, size, pooled="gathered"):
        if (tensor, size, pooled) not in known:
            runs = runs_of(tensor, pooled)
            given = tensor, size, list(runs.values()), pooled == "sharded"
            ranks = run_ranks(tensor * size, all_steps, *given)
            known[tensor, size, pooled] = [dict(zip(runs, each, strict=True)) for each in ranks]
        return known[tensor, size, pooled]

    return of


def _cases():
    """Two ranks in `make test`, four in `make test-distributed`."""
    for layout in LAYOUTS:
        marks = [pytest.mark.slow] if layout[0] * layout[1] > 2 else []
        for name in runs_of(layout[0], layout[2]):
            label = "-".join(map(str, (*layout, name)))
            yield pytest.param(layout, name, marks=marks, id=label)


@pytest.mark.parametrize(("layout", "name"), list(_cases()))
def test_loss_and_gradients_are_those_of_one_rank(found, layout, name):
    tensor = layout[0]
    for number, ranks in enumerate(found(*layout)):
        sums, gradients, _, queue = ranks[name]
        expected, wanted, _, whole = found(tensor, 1)[number % tensor][name]
        assert sums[0] == pytest.approx(expected[0], rel=1e-6)  # Megatron's sum is of float32
        assert sums[1] == pytest.approx(expected[1], rel=1e-6 if name == "heads" else 1e-12)
        close = {"rtol": 1e-9, "atol": 1e-12}
        if name == "heads":  # whose scores are of float32
            close = {"rtol": 1e-5, "atol": 1e-6}
        assert gradients.keys() == wanted.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(
                torch.from_numpy(gradient), torch.from_numpy(wanted[key]), **close,
                msg=lambda said, key=key: f"{key}: {said}",
            )  # fmt: skip
        assert queue.keys() == whole.keys()
        for key, tensor_ in queue.items():
            torch.testing.assert_close(tensor_, whole[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUNS)
def test_every_token_is_computed_on_one_rank(found, name, size):
    (_, _, [*whole], _) = found(1, 1)[0][name]
    shares = torch.tensor([ranks[name][2] for ranks in found(1, size)])
    assert shares.sum(0).tolist() == whole
    if name == "ragged":
        assert (shares[:, 0, 0] <= whole[0][0] / size + 13).all(), "one document over at most"
    if name in ("one document", "one context"):
        assert 0 in shares, "a rank has none"
