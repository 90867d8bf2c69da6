"""The optimizer's states in files (offload_optimizer: {device: nvme}) while a run trains.

Every rank has a folder of its own, locked by its process: runs may share a disk, and what a killed
one left is removed by the next that starts there.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.locks import FileLock, HeldError
from msa_train.errors import ConfigError
from msa_train.hardware import gb

BYTES = 16  # of an element in files: its weight, its gradient and two moments, in float32
_ZERO = "training.deepspeed.zero_optimization.offload_optimizer"
_LOCK = "lock"
_own: dict[Path, FileLock] = {}  # of this process


def check(path: Path, aio: Mapping[str, Any]) -> None:
    """aio: settings of DeepSpeed's. Builds its op where that is not built yet, which takes minutes,
    before ranks wait for one another. Raises ConfigError."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    if unknown := sorted(aio.keys() - AIO_DEFAULT_DICT.keys()):
        known = ", ".join(sorted(AIO_DEFAULT_DICT))
        raise ConfigError(f"training.deepspeed.aio.{unknown[0]} is not DeepSpeed's: give {known}")
    if not path.is_dir():
        raise ConfigError(f"{_ZERO}.nvme_path is {path}: there is no such folder; make it")
    builder = AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        raise ConfigError(
            f"{_ZERO}.device is nvme, for which DeepSpeed needs libaio with its headers, and there "
            "is none here: install it (libaio-dev), or give cpu"
        )
    try:
        builder.load(verbose=False)
    except Exception as error:  # a compiler's, ninja's, the dynamic linker's
        raise ConfigError(
            f"{_ZERO}.device is nvme, and DeepSpeed's async_io cannot be built here: {error}"
        ) from error


def own_folder(path: Path, elements: int) -> Path:
    """A new folder of this process under `path`; every rank must call. elements: that are to go
    there. Raises ConfigError on all ranks where a machine's disk is too small."""
    host = socket.gethostname()
    mine = f"msa-train-{host}-"
    _remove_leftovers(path, mine)
    needs: Counter[str] = Counter()
    for each, need in _of_all((host, elements * BYTES)):
        needs[each] += need
    flaw = _flaw(path, needs[host])
    if flaws := [flaw for flaw in _of_all(flaw) if flaw is not None]:
        raise ConfigError(f"{_ZERO}.nvme_path is {path}, {flaws[0]}")
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


def _remove_leftovers(path: Path, start: str) -> None:
    for each in path.glob(f"{start}*"):
        with suppress(HeldError, OSError), FileLock(each / _LOCK, "removing"):
            shutil.rmtree(each, ignore_errors=True)


def _of_all(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _flaw(path: Path, need: int) -> str | None:
    """Why this machine cannot write so many bytes there."""
    try:
        tempfile.TemporaryFile(dir=path).close()
        free = shutil.disk_usage(path).free
    except OSError as error:
        return f"where {socket.gethostname()} cannot write: {error.strerror}"
    if need > free:
        return (
            f"with {gb(free)} free on {socket.gethostname()}, whose ranks need {gb(need)} there: "
            "make room, or share the states among more machines"
        )
    return None


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
