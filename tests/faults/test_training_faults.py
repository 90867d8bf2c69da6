"""kill -9 at random moments of a run: what continues from the last checkpoint is the same run.

`make test` tries the first few points, `make test-faults-training` all of them. Runs of the odd
ones write their checkpoints beside the steps; what they must come to is a run's that waits.
"""

import random
import time

import pytest

from msa_train import checkpoint_folders
from tests.distributed.runs import logged, settings
from tests.faults.killing import start

POINTS = 100
QUICK, QUICK_DOCUMENTS = (0, 1, 2), (1,)
STEPS = 15
# Epochs of the stages end after steps 3 and 6, then 9, 12 and 15.
STAGES = (
    "[{name: router, steps: 6, epochs: 2, lr: 1e-2, lm_weight: 0.1, router_weight: 1, "
    "trains: router, data: {document_tokens: 0}}, "
    "{name: main, steps: 9, epochs: 3, lr: 1e-2, final_lr: 1e-3, warmup_steps: 3}]"
)


def arguments(output, zero_stage, document_parallel=1, async_save=False):
    return settings(
        output, stages=STAGES, training__zero_stage=zero_stage, training__checkpoint_every=2,
        training__timeout_s=20, training__document_parallel=document_parallel,
        training__async_save=async_save,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    from data_pipeline.shards.build import build_shards
    from msa_train.config import load_config

    folder = tmp_path_factory.mktemp("data") / "shards"
    build_shards(load_config(arguments("unused", 1)).corpus, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """(seconds, outcome) of a run that nobody disturbs, by ZeRO stage and document parallel; made
    when first asked for."""
    known = {}

    def run(*layout):
        if layout not in known:
            output = tmp_path_factory.mktemp("whole")
            (output / "shards").symlink_to(shards)
            began = time.monotonic()
            codes = start(arguments(output, *layout), output / "log").wait()
            assert codes == [0, 0], (output / "log").read_text()[-3000:]
            known[layout] = time.monotonic() - began, outcome(output)
        return known[layout]

    return run


def outcome(output):
    """Final weights, and every loss on the way to them."""
    checkpoints = list(checkpoint_folders.newest_first(output / "checkpoints"))
    for each in checkpoints:
        checkpoint_folders.check(each)
    assert len(checkpoints) == 2 and checkpoints[0].name == checkpoint_folders.name_of(STEPS)
    names = ("step", "loss/lm", "loss/router", "grad_norm")
    losses = [tuple(row[name] for name in names) for row in logged(output)]
    return (checkpoints[0] / "weights-tp0.safetensors").read_bytes(), losses


def _points(documents, quick):
    for point in range(POINTS):
        marks = [pytest.mark.slow] if point not in quick else []
        stage = 1 + point % 3
        name = f"point{point}-zero{stage}{f'-documents{documents}' * (documents > 1)}"
        name += "-async" * (point % 2)
        yield pytest.param(point, stage, documents, marks=marks, id=name)


@pytest.mark.parametrize(
    ("point", "stage", "documents"), [*_points(1, QUICK), *_points(2, QUICK_DOCUMENTS)]
)
def test_a_killed_run_continues_to_the_same_end(point, stage, documents, whole, shards, tmp_path):
    rng = random.Random(point + 1000 * (documents - 1))
    seconds, expected = whole(stage, documents)
    (tmp_path / "shards").symlink_to(shards)
    command, log = arguments(tmp_path, stage, documents, point % 2 == 1), tmp_path / "log"
    for kill in range(rng.choice([1, 1, 2])):
        run = start([*command, *["--resume"] * (kill > 0)], log)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        run.kill(rng.choice([[0, 1], [0], [1]]))
        run.wait()  # a rank whose peer died must end too
    codes = start([*command, "--resume"], log).wait()
    assert codes == [0, 0], log.read_text()[-3000:]
    weights, losses = outcome(tmp_path)
    assert losses == expected[1]
    assert weights == expected[0]
