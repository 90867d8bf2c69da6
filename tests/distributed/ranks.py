"""Run a function on several gloo ranks; nothing hangs, and a missing rank is named.

Ranks are forked from a server that has imported everything once: a start costs a moment, where the
imports cost seconds of every rank.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

IMPORTED = ["deepspeed", "msa_train.training.trainer", "tests.distributed.runs"]
# As the launcher sets them: the server reads them when it imports, once for all of its ranks.
ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_all(processes: Sequence[BaseProcess]) -> None:
    """Starts processes of `prepared()`, and their server with the first of them."""
    with pytest.MonkeyPatch.context() as patch:
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
    try:
        results.put((rank, target(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    sys.stdout.flush()
    results.close()
    results.join_thread()
    time.sleep(600)  # the parent ends this process: interpreter exit after gloo may abort
