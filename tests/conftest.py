"""Shared by all rooms: the training module on a single rank."""

import pytest
import torch

# Where single tests take longest, because they start processes and wait for them.
LONG = ("tests/training/", "tests/distributed/", "tests/faults/", "tests/bench/")


def pytest_collection_modifyitems(items):
    """Long tests first: at the end no worker is left with one while the other has nothing to do."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="module")
def megatron():
    """Builds training modules of a ModelConfig."""
    from megatron.core import parallel_state

    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel import groups

    groups.start(tensor_parallel=1, timeout_s=60)

    def build(config, **settings):
        model = MSAModel(config, **settings)
        model.load_published(initial_reader(config, 0))
        return model

    yield build
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
