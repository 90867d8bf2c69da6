"""DeepSpeed's async_io without libaio: its handle's calls on plain files.

What is swapped, when and where is DeepSpeed's own code; the real op is in test_nvme.py.
"""

from types import SimpleNamespace

import torch

_LOCKED: list[torch.Tensor] = []  # page-locked, of this process


class Handle:
    """Reads and writes at once; `wait` returns how many there were, as the real one does."""

    def __init__(self, **settings):
        self.done = 0

    def new_cpu_locked_tensor(self, numel: int, like: torch.Tensor) -> torch.Tensor:
        _LOCKED.append(torch.empty(numel, dtype=like.dtype))
        return _LOCKED[-1]

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        return True

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return any(each.untyped_storage().data_ptr() == storage for each in _LOCKED)

    def async_pwrite(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        assert self.is_pinned(tensor)
        with open(path, "wb") as file:
            file.write(tensor.detach().numpy())
        self.done += 1
        return 0

    def async_pread(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        assert self.is_pinned(tensor)
        found = torch.from_file(path, shared=False, size=tensor.numel(), dtype=tensor.dtype)
        tensor.copy_(found)
        self.done += 1
        return 0

    def wait(self) -> int:
        done, self.done = self.done, 0
        return done


def pretend_aio() -> None:
    """For the rest of this process, where a block of training.deepspeed.aio is swapped;
    DeepSpeed has at least 1 MB."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.runtime.swap_tensor import optimizer_utils

    AsyncIOBuilder.load = lambda self, verbose=False: SimpleNamespace(aio_handle=Handle)
    AsyncIOBuilder.is_compatible = lambda self, verbose=False: True
    optimizer_utils.MIN_AIO_BYTES = 0
