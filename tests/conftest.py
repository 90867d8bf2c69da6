"""Shared by all rooms: the training module on a single rank; where tests see a GPU."""

import os

import pytest
import torch


def pytest_configure(config):
    """Only `-m gpu` shows tests a GPU: others compare with a CPU's numbers, or start two ranks."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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
