"""What Megatron and DeepSpeed are told on a machine without CUDA, and only there."""

import pytest
import torch

from msa_train.parallel.cpu import prepare_deepspeed, prepare_megatron


@pytest.mark.parametrize("cuda", [False, True])
def test_megatron_allocates_on_the_cpu_where_there_is_no_gpu(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "untouched")
    prepare_megatron()
    assert torch.cuda.current_device() == ("untouched" if cuda else torch.device("cpu"))


def test_deepspeed_compiles_no_communication_op_on_the_cpu(monkeypatch):
    import deepspeed.ops

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    prepare_deepspeed()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
