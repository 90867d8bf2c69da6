"""A model under DeepSpeed, on one rank: gradients, steps that are skipped, the router alone."""

import math

import pytest
import torch

from tests.distributed.ranks import run_ranks


def observe() -> dict:
    """What an engine of a tiny model does; in a process of its own."""
    from msa_train.config import TrainingConfig
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel import groups
    from msa_train.training.engine import Engine, is_router
    from tests.batches import random_batch, tiny_config

    groups.start(tensor_parallel=1, timeout_s=60)
    config = tiny_config("threshold")
    model = MSAModel(config)
    model.load_published(initial_reader(config, 0))
    engine = Engine(model, TrainingConfig(weight_decay=0.0))
    batch = random_batch([[4, 9, 1]], [(0, 9), (0, 6)], config)

    def step(scale: float, router_only: bool = False) -> dict[str, bool]:
        """Which weights a step changed."""
        before = dict(engine.full_weights())
        losses = engine(batch)
        engine.backward((losses.lm + losses.router) * scale)
        engine.set_learning_rate(1e-2, router_only)
        engine.step()
        after = dict(engine.full_weights())
        return {name: not torch.equal(before[name], after[name]) for name in before}

    found = {"alone": step(1.0, router_only=True), "norm": engine.gradient_norm()}
    found["routers"] = [name for name in found["alone"] if is_router(name)]
    found["broken"], found["skipped"] = step(math.nan), engine.skipped
    found["all"], found["whole"] = step(1.0), not engine.skipped
    found["most"] = engine.max_over_ranks(3)
    found["types"] = {weight.dtype for _, weight in engine.full_weights()}
    return found


@pytest.fixture(scope="module")
def found():
    return run_ranks(1, observe)[0]


def test_the_router_trains_alone(found):
    changed = {name for name, moved in found["alone"].items() if moved}
    assert changed and changed <= set(found["routers"])
    assert found["norm"] > 0


def test_a_step_that_is_not_finite_changes_nothing(found):
    assert found["skipped"] and not any(found["broken"].values())
    assert found["whole"] and sum(found["all"].values()) > len(found["routers"])


def test_weights_are_told_in_full_precision(found):
    assert found["types"] == {torch.float32} and found["most"] == 3
