"""The optimizer's states in files (offload_optimizer: {device: nvme}) while a run trains.

Every rank has a folder of its own, locked by its process: runs may share a disk, and what a killed
one left is removed by the next that starts there.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import socket
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils import cpp_extension

from data_pipeline.locks import FileLock, HeldError
from msa_train.errors import ConfigError, FileError
from msa_train.hardware import gb
from msa_train.training.saying import say

BYTES = 16  # of an element in files: its weight, its gradient and two moments, in float32
_ZERO = "training.deepspeed.zero_optimization.offload_optimizer"
_LOCK = "lock"  # of a folder here, and of torch's where an op is compiled
_COMPILING_S = 15 * 60
_BLOCK = 1024  # bytes of which DeepSpeed writes and reads any number
_LEAST_FREE = 1 << 20  # bytes: as many are written at once
_own: dict[Path, FileLock] = {}  # of this process
_sizes: dict[Path, int] = defaultdict(int)  # of what is in them, in bytes


def check(path: Path, aio: Mapping[str, Any]) -> None:
    """aio: settings of DeepSpeed's. Builds its op where that is not built yet, which takes minutes.
    Raises ConfigError."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    known = sorted(AIO_DEFAULT_DICT.keys() - {"use_gds"})  # which files of the optimizer do not use
    if unknown := sorted(aio.keys() - set(known)):
        raise ConfigError(
            f"training.deepspeed.aio.{unknown[0]} is not known here: give {', '.join(known)}"
        )
    if not path.is_dir():
        raise ConfigError(f"{_ZERO}.nvme_path is {path}: there is no such folder; make it")
    builder = AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        raise ConfigError(
            f"{_ZERO}.device is nvme, for which DeepSpeed needs libaio with its headers, and there "
            "is none here: install it (libaio-dev), or give cpu"
        )
    if torch.cuda.is_available() and cpp_extension.CUDA_HOME is None:
        raise ConfigError(
            f"{_ZERO}.device is nvme, for which DeepSpeed compiles its async_io with nvcc, and "
            "there is none here: install the CUDA toolkit (CUDA_HOME), or give cpu"
        )
    _wait_for_compilers()
    try:
        builder.load(verbose=False)
    except Exception as error:  # a compiler's, ninja's, the dynamic linker's
        raise ConfigError(
            f"{_ZERO}.device is nvme, and DeepSpeed's async_io cannot be built here: {error}"
        ) from error


def _wait_for_compilers() -> None:
    """For those of other processes, for whose locks torch waits without end."""
    deadline = time.monotonic() + _COMPILING_S
    for op in ("pin_memory", "async_io"):
        folder = Path(cpp_extension._get_build_directory(op, verbose=False))
        if not (folder / f"{op}.so").exists() and not (folder / _LOCK).exists():
            say(f"DeepSpeed's {op} is compiled into {folder}: once, for some minutes")
        while (folder / _LOCK).exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{folder / _LOCK}: a process has compiled DeepSpeed's {op} for "
                    f"{_COMPILING_S // 60} minutes, or was killed: remove that file if none does"
                )
            time.sleep(0.2)


def own_folder(path: Path, aio: Mapping[str, Any], shares: Sequence[int]) -> Path:
    """A new folder of this process under `path`; every rank must call. shares: elements of each
    weight whose states are to go there. Raises ConfigError on all ranks where a machine cannot."""
    host = socket.gethostname()
    mine = f"msa-train-{host}@"
    _remove_leftovers(path, mine)
    needs: Counter[str] = Counter()
    for each, need in _of_all((host, sum(shares) * BYTES)):
        needs[each] += need
    flaw = _flaw(path, aio, needs[host], math.gcd(*shares) * 4)
    if flaws := [flaw for flaw in _of_all(flaw) if flaw is not None]:
        raise ConfigError(flaws[0])
    hidden = Path(tempfile.mkdtemp(prefix=f".{mine}", dir=path))  # from others until it is locked
    lock = FileLock(hidden / _LOCK, "training")
    folder = hidden.rename(path / hidden.name[1:])
    _own[folder] = lock
    return folder


def remove() -> None:
    """The folders of this process."""
    while _own:
        folder, lock = _own.popitem()
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
    _sizes.clear()


def check_room() -> None:
    """Raises FileError where files of this process have grown and their disk is full: DeepSpeed
    takes every write for done."""
    for folder in _own:
        size = sum(file.stat().st_size for file in folder.rglob("*.swp"))
        if size > _sizes[folder] and shutil.disk_usage(folder).free < _LEAST_FREE:
            raise FileError.of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)))
        _sizes[folder] = size


def _remove_leftovers(path: Path, start: str) -> None:
    for each in path.glob(f"{start}*"):
        with suppress(HeldError, OSError), FileLock(each / _LOCK, "removing"):
            shutil.rmtree(each, ignore_errors=True)


def _of_all(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _flaw(path: Path, aio: Mapping[str, Any], need: int, step: int) -> str | None:
    """Why this machine cannot have so many bytes there. step: of addresses that are read to."""
    host = socket.gethostname()
    try:
        check(path, aio)
        _try(path, step)
    except ConfigError as error:
        return f"{error} (on {host})"
    except OSError as error:
        return (
            f"{_ZERO}.nvme_path is {path}, where {host} cannot write and read past its cache, at "
            f"addresses in steps of {step} bytes: {error.strerror}; give a folder on a disk of its "
            "own, or another number of ranks"
        )
    free = shutil.disk_usage(path).free
    if need > free:
        return (
            f"{_ZERO}.nvme_path is {path}, with {gb(free)} free on {host}, whose ranks need "
            f"{gb(need)} there: make room, or share the states among more machines"
        )
    return None


def _try(path: Path, step: int) -> None:
    """Raises OSError where files cannot be written and read as DeepSpeed does, which looks at no
    result: past the system's cache, and into any place of a buffer."""
    memory = np.frombuffer(mmap.mmap(-1, 3 * mmap.PAGESIZE), np.uint8)
    there = mmap.PAGESIZE + step % mmap.PAGESIZE
    given, found = memory[:_BLOCK], memory[there : there + _BLOCK]
    given[:] = 1
    with tempfile.NamedTemporaryFile(dir=path) as file:
        descriptor = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            os.pwritev(descriptor, [given], 0)
            os.preadv(descriptor, [found], 0)
        finally:
            os.close(descriptor)
    if not found.all():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def states_mapped(optimizer: Any) -> Iterator[None]:
    """DeepSpeed's ZeRO-3 optimizer as if its states lay in memory, for reading: they are the mapped
    files.

    Its own checkpoints of swapped states leave out what is too small to be swapped and how many
    steps were made, and are read by the ranks that wrote them alone.
    """
    infos = optimizer.optimizer_swapper.swap_params_info.values()
    for info in infos:
        for each in info.tensors:
            each.compute_tensor.data = torch.from_file(
                each.swap_path, shared=False, size=info.numel(), dtype=info.dtype()
            )
    optimizer.swap_optimizer = False
    try:
        yield
    finally:
        optimizer.swap_optimizer = True
        for info in infos:
            info.release_memory()
