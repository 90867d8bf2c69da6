"""Tensors between the driver and the workers: torch.distributed, point to point.

Every worker talks with the driver alone, so that a failure is the failure of one known rank. The
process group is an object, not the process's default group, which training or an evaluation in the
same process may have. Ranks meet through a file, and gloo listens on loopback only: no port to
clash, nothing open to the network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_POLL_S = 2e-5

Wait = Callable[[float], None]


class ExchangeError(RuntimeError):
    """A tensor did not arrive: its rank is dead, or late."""


class Exchange:
    """The process group of `count` ranks, of which this process is `rank`.

    Tensors travel as bytes and by their device: gloo on the CPU, NCCL on GPUs. Raises
    RuntimeError where the other ranks do not come in time. Deadlines: time.monotonic().
    """

    def __init__(self, file: Path, rank: int, count: int, device: torch.device, timeout_s: float):
        limit = timedelta(seconds=timeout_s)
        store = dist.FileStore(str(file), count)
        store.set_timeout(limit)
        self.device = device
        connect = _nccl if device.type == "cuda" else _gloo
        self._group = connect(store, rank, count, limit)
        self._greet(range(1, count) if rank == 0 else [0], rank == 0, time.monotonic() + timeout_s)

    def send(self, tensor: Tensor, rank: int) -> Wait:
        """Begins to send; the result waits for the end and raises ExchangeError."""
        data = as_bytes(tensor)
        return self._started(self._group.send, data, rank)

    def receive(self, size: int, rank: int, deadline: float) -> Tensor:
        """The next [size] bytes that `rank` sends, on this rank's device. Raises ExchangeError."""
        data = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._started(self._group.recv, data, rank)(deadline)
        return data

    def close(self) -> None:
        """Ends the group at once: what is under way is given up."""
        if self.device.type == "cuda":
            self._group.abort()
        self._group = None

    def _greet(self, others: Iterable[int], first: bool, deadline: float) -> None:
        """A byte each way: NCCL connects two ranks when they first talk, which no request's
        deadline could interrupt."""
        for other in others:
            byte = torch.zeros(1, dtype=torch.uint8, device=self.device)
            if first:
                self.send(byte, other)(deadline)
            self.receive(1, other, deadline)
            if not first:
                self.send(byte, other)(deadline)

    def _started(self, operation: Callable, data: Tensor, rank: int) -> Wait:
        if not len(data):
            return lambda deadline: None
        try:
            work = operation([data], rank, 0)
        except RuntimeError as error:
            raise ExchangeError(str(error)) from error

        def wait(deadline: float) -> None:
            assert data is not None  # is kept until then
            _finish(work, self.device, deadline)

        return wait


def as_bytes(tensor: Tensor) -> Tensor:
    """[bytes] uint8 of a tensor."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _finish(work: dist.Work, device: torch.device, deadline: float) -> None:
    if device.type != "cuda":
        left = max(1e-3, deadline - time.monotonic())
        try:
            work.wait(timedelta(seconds=left))
        except RuntimeError as error:
            raise ExchangeError(str(error)) from error
        return
    # NCCL's own wait only orders streams.
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise ExchangeError("the deadline passed")
        time.sleep(_POLL_S)


def _gloo(store: dist.Store, rank: int, count: int, limit: timedelta) -> dist.ProcessGroup:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = limit
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return dist.ProcessGroupGloo(store, rank, count, options)


def _nccl(store: dist.Store, rank: int, count: int, limit: timedelta) -> dist.ProcessGroup:
    # Deadlines are kept here: NCCL's watchdog would end the process that serves.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rank, count, options)
