"""What DeepSpeed needs to be told on a machine without CUDA."""

import torch


def prepare_deepspeed() -> None:
    """Before anything of DeepSpeed starts: on a CPU it would compile a communication op for minutes.

    gloo does the same job; a killed compile would leave a lock that later runs wait on for ever.
    """
    if torch.cuda.is_available():
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
