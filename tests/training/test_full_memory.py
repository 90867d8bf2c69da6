"""A rank whose memory is full, here by errors that are only pretended."""

import os

import pytest
import torch

from msa_train.config import load_config
from msa_train.errors import FullMemoryError
from msa_train.hardware import gb
from msa_train.training.full_memory import ran_out
from msa_train.training.planner.weights import weights
from tests.distributed.ranks import Apart
from tests.distributed.runs import settings

SAID = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"


def train(arguments, where):
    """A run whose third backward pass, or whose start, needs more than there is."""
    from msa_train.training import trainer

    passes = iter(range(100))
    real = trainer.GradientCache.backward

    def backward(self, batch, weigh):
        if next(passes) == 2:
            raise RuntimeError(SAID)
        return real(self, batch, weigh)

    def start(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if where == "start":
        trainer.MSAModel = start
    else:
        trainer.GradientCache.backward = backward
    trainer.main(arguments)


@pytest.mark.parametrize("where", ["start", "step"])
def test_the_plan_is_printed_beside_what_is_allocated(shards, tmp_path, where):
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    given = settings(tmp_path / "run", training__shards=shards)
    done = Apart(tmp_path, environment, train, given, where).end()
    assert done.code == FullMemoryError.exit_code == 13
    assert "Traceback" not in done.err
    said = "2.00 GiB" if where == "start" else "can't allocate memory"
    assert f"memory is full ({'CUDA' if where == 'start' else '[enforce'}" in done.err
    assert said in done.err and "the sample: " in done.err and "12 documents" in done.err
    count = weights(load_config(given).model).all
    assert f"planned, held: weights {gb(4 * count)}, master weights {gb(4 * count)}" in done.err
    assert "planned, backward: gradients " in done.err and "planned at most: " in done.err
    assert "less would take: " in done.err and "this process: allocated " in done.err


def test_other_errors_are_not_of_memory():
    assert ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError("x"))
    assert ran_out(RuntimeError(SAID))
    assert not ran_out(RuntimeError("a bug")) and not ran_out(ValueError(SAID))
