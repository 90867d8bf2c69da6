"""Where training computes, and what Megatron and DeepSpeed are told on a CPU, and only there."""

import pytest
import torch

from msa_train.errors import ConfigError
from msa_train.parallel.cpu import (
    check_gpus,
    choose_device,
    gpus,
    means_cpu,
    prepare_deepspeed,
    prepare_megatron,
)


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    """A machine with two, in an environment of its own."""
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_gpu_each_where_the_settings_do_not_say_the_cpu(monkeypatch):
    assert gpus() == 2 and not means_cpu("auto") and not means_cpu("cuda")
    check_gpus(2, "--ranks")
    with pytest.raises(
        ConfigError, match=r"--ranks asks for 3 ranks .* sees 2: .*training\.device cpu"
    ):
        check_gpus(3, "--ranks")
    choose_device("auto")
    assert gpus() == 2
    choose_device("cpu")
    assert gpus() == 0 and means_cpu("auto")
    check_gpus(3, "--ranks")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert means_cpu("auto")
    check_gpus(8, "--ranks")
    with pytest.raises(ConfigError, match=r"training\.device is cuda, but torch sees no GPU"):
        means_cpu("cuda")


@pytest.mark.parametrize("cuda", [False, True])
def test_megatron_allocates_on_the_cpu_where_there_is_no_gpu(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "untouched")
    prepare_megatron()
    assert torch.cuda.current_device() == ("untouched" if cuda else torch.device("cpu"))


def test_deepspeed_compiles_no_communication_op_on_the_cpu(monkeypatch):
    import deepspeed.ops

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    prepare_deepspeed()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
