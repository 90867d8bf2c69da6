"""Run a function on several gloo ranks; nothing hangs, and a missing rank is named."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(count: int, target: Callable[..., Any], *args: Any, timeout_s: float = 300) -> list:
    """Results of target(*args) on ranks 0..count-1. Fails when a rank raises, dies or is late."""
    port = free_port()
    context = mp.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, count, port, target, args, results), daemon=True)
        for rank in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # as the launcher does: Megatron loads faster
        for process in ranks:
            process.start()
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
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        results.put((rank, target(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    sys.stdout.flush()
    results.close()
    results.join_thread()
    time.sleep(600)  # the parent ends this process: interpreter exit after gloo may abort
