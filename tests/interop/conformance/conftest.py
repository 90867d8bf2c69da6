"""A training and a serving case of the published behaviour, written by the dense oracle."""

import pytest
import torch

from tests.interop.conformance.published_cases import write_serving, write_training
from tests.interop.conformance.published_variants import Serving, Training, published_config


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def training(tmp_path):
    config = published_config(layers=2, router_layer_idx="1")
    return write_training(Training("training", config), tmp_path)


@pytest.fixture
def serving(tmp_path):
    config = published_config(layers=2, router_layer_idx="1")
    return write_serving(Serving("serving", config, ((9, 5), (14, 6, 2)), steps=2), tmp_path)
