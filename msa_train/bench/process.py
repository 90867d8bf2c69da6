"""Measuring in processes of their own, and what a process holds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from msa_train.errors import RankError

TIMEOUT_S = 3600.0  # of one row
_STATUS = Path("/proc/self/status")


def in_process(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """The result of a call in a fresh process, whose peak memory is its own.

    threads: of torch in it (None: as many as here). Raises RankError where it takes too long.
    """
    threads = threads or torch.get_num_threads()
    name = function.__name__.strip("_")
    pool = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (threads,))
    try:
        return pool.submit(function, *arguments).result(TIMEOUT_S)
    except TimeoutError:
        for process in pool._processes.values():
            process.kill()
        raise RankError(f"bench memory: {name} was not done in {TIMEOUT_S:,.0f} s") from None
    except BrokenProcessPool:
        raise RankError(
            f"bench memory: the process of {name} died; was there memory for it?"
        ) from None
    finally:
        pool.shutdown(wait=False)


def _prepare(threads: int) -> None:
    os.dup2(2, 1)  # standard output is for the result
    torch.set_num_threads(threads)


def log(text: str) -> None:
    print(f"bench memory: {text}", file=sys.stderr, flush=True)


def memory_gb() -> dict[str, float]:
    """Of this process: peak and present resident memory, and of that its own and files' pages."""
    names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "own", "RssFile": "files"}
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    found = {names[key[:-1]]: int(rest[0]) * 1024 for key, *rest in lines if key[:-1] in names}
    return {name: round(size / 1e9, 3) for name, size in found.items()}


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def forget_pages(folder: Path) -> None:
    """Asks the kernel to drop a folder's files from its page cache: the next reader is cold."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
