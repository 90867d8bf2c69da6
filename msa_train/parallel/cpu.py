"""Whether training computes on GPUs or on the CPU, and what Megatron and DeepSpeed need to be told
where it is the CPU: all of it, here."""

import os

import torch

from msa_train.errors import ConfigError

# What DeepSpeed, Megatron and the ranks read in a process that is to compute on the CPU.
CPU_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def gpus() -> int:
    """How many GPUs training may compute on here; 0: it computes on the CPU."""
    if os.environ.get("DS_ACCELERATOR") == CPU_ENVIRONMENT["DS_ACCELERATOR"]:
        return 0
    return torch.cuda.device_count()


def means_cpu(device: str) -> bool:
    """Whether training.device (auto, cpu or cuda) is the CPU here.

    Raises ConfigError for cuda where there is none.
    """
    if device == "cuda" and not gpus():
        raise ConfigError(
            "training.device is cuda, but torch sees no GPU here (`msa doctor` says why): give cpu "
            "or auto"
        )
    return device == "cpu" or not gpus()


def choose_device(device: str) -> None:
    """Decide for this process, before anything is made in it. Raises as means_cpu."""
    if means_cpu(device):
        os.environ.update(CPU_ENVIRONMENT)


def check_gpus(ranks: int, named: str) -> None:
    """Raises ConfigError where this machine has GPUs, but fewer than `ranks`, which `named` asks
    for."""
    if 0 < (there := gpus()) < ranks:
        raise ConfigError(
            f"{named} asks for {ranks} ranks on this machine, each on a GPU of its own, and torch "
            f"sees {there}: start {there} at most, or compute on the CPU (training.device cpu)"
        )


def prepare_megatron() -> None:
    """Megatron allocates the buffers of its collectives on torch.cuda.current_device()."""
    if not gpus():
        torch.cuda.current_device = lambda: torch.device("cpu")


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling a CPU communication op for minutes; gloo does the same job.

    A killed compile would also leave a lock that later runs wait on for ever.
    """
    if gpus():
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
