"""Process groups: numbers of ranks that cannot be divided, and DeepSpeed's view of Megatron's."""

import pytest
import torch

from msa_train.errors import ConfigError, FileError
from msa_train.parallel import groups


def test_ranks_that_cannot_be_divided_are_refused(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"3 ranks, which training.tensor_parallel \(2\) does not divide"
    ):
        groups.start(tensor_parallel=2, timeout_s=1)


def test_a_rank_without_a_gpu_beside_ranks_with_one_is_refused(monkeypatch):
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"rank 1 asks for 2 ranks .* sees 1: "):
        groups.start(tensor_parallel=1, timeout_s=1)


def test_a_process_without_a_launcher_is_a_rank_alone(megatron):
    ours = groups.DeepSpeedGroups
    assert ours.get_data_parallel_world_size() == ours.get_model_parallel_world_size() == 1
    assert ours.get_data_parallel_rank() == ours.get_tensor_model_parallel_rank() == 0
    assert torch.distributed.get_world_size(ours.get_data_parallel_group()) == 1


def test_what_rank_0_cannot_write_is_an_error_of_all(megatron, tmp_path):
    with pytest.raises(FileError, match=r"/none/note: No such file") as raised:
        groups.of_rank_0(lambda: (tmp_path / "none" / "note").write_text(""))
    assert raised.value.on_all_ranks


def test_deepspeed_finds_no_sequence_parallel_groups():
    assert not [name for name in dir(groups.DeepSpeedGroups) if "sequence_parallel" in name]


def test_one_tensor_rank_has_nothing_to_sum(megatron):
    weight = torch.nn.Parameter(torch.ones(2))
    groups.sum_over_tensor_ranks([weight])
    weight.sum().backward()
    assert weight.grad.tolist() == [1, 1]
