"""Run a function on several gloo ranks; nothing hangs, and a missing rank is named.

Ranks are forked from a server that has imported everything once: a start costs a moment, where the
imports cost seconds of every rank.
"""

import atexit
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

IMPORTED = ["deepspeed", "msa_train.training.trainer", "tests.distributed.runs"]
# As the launcher sets them: the server reads them when it imports, once for all of its ranks.
ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
_STARTS = threading.Lock()  # threads change the environment in turns


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_all(processes: Sequence[BaseProcess]) -> None:
    """Starts processes of `prepared()`, and their server with the first of them."""
    with _STARTS, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for process in processes:
            process.start()


def prepared() -> ForkServerContext:
    """Makes processes that have imported everything. They see the environment of their server,
    the first test's that started one: what differs is set by their target."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str


class Apart:
    """target(*args) in a process of `prepared()`, where it leads a session, in this environment.

    folder: where what it prints is kept.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], target: Callable[..., Any], *args: Any
    ):
        self._printed = folder / "out", folder / "err"
        given = self._printed, dict(environment), target, args
        self.process = prepared().Process(target=_apart, args=given)
        start_all([self.process])

    def end(self, limit_s: float = 120) -> Ended:
        """Waits for its end; none of what it has started outlives that."""
        self.process.join(limit_s)
        code = self.process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        out, err = (path.read_text() for path in self._printed)
        assert code is not None, f"no end within {limit_s} s:\n{err}"
        return Ended(code, out, err)


def _apart(
    printed: tuple[Path, Path], environment: dict[str, str], target: Callable, args: tuple
) -> None:
    os.setsid()
    for stream, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ |= environment | ENVIRONMENT
    try:
        target(*args)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out


def run_ranks(count: int, target: Callable[..., Any], *args: Any, timeout_s: float = 300) -> list:
    """Results of target(*args) on ranks 0..count-1. Fails when a rank raises, dies or is late."""
    port = free_port()
    context = prepared()
    results = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, count, port, target, args, results), daemon=True)
        for rank in range(count)
    ]
    start_all(ranks)
    found, deadline = {}, time.monotonic() + timeout_s
    try:
        while len(found) < count:
            if not results.empty():
                rank, value, error = results.get()
                assert error is None, f"rank {rank} failed:\n{error}"
                found[rank] = value
                continue
            missing = [rank for rank in range(count) if rank not in found]
            dead = [r for r in missing if ranks[r].exitcode is not None and results.empty()]
            assert not dead, f"ranks {dead} died ({[ranks[r].exitcode for r in dead]})"
            assert time.monotonic() < deadline, f"ranks {missing} did not finish in {timeout_s} s"
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [found[rank] for rank in range(count)]


def _rank(rank: int, count: int, port: int, target: Callable, args: tuple, results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ENVIRONMENT,
    }  # fmt: skip
    gc.freeze()  # what the server has imported, which every engine's end would look through
    try:
        results.put((rank, target(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    sys.stdout.flush()
    results.close()
    results.join_thread()
    time.sleep(600)  # the parent ends this process: interpreter exit after gloo may abort
