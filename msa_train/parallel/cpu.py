"""What Megatron and DeepSpeed need to be told on a machine without CUDA: all of it, here."""

import torch


def prepare_megatron() -> None:
    """Megatron allocates the buffers of its collectives on torch.cuda.current_device()."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: torch.device("cpu")


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling a CPU communication op for minutes; gloo does the same job.

    A killed compile would also leave a lock that later runs wait on for ever.
    """
    if torch.cuda.is_available():
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
