import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.processes import start_worker, workers_of


def test_a_worker_that_starts_while_another_dies_is_not_waited_for():
    died = pytest.raises(DataError, match="a process that builds shards died")
    with died, workers_of(1) as pool:
        late = get_context("spawn").Process(target=time.sleep, args=(600,))
        late.start()
        pool.submit(os._exit, 1).result()
    late.join(10)
    assert late.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["spawn", "fork"])
def test_workers_end_with_a_parent_that_was_killed(kind):
    context = get_context("spawn")
    found = context.Queue()
    parent = context.Process(target=_employ, args=(kind, found))
    parent.start()
    workers = {found.get(timeout=60) for _ in range(2)}
    parent.kill()
    parent.join(10)
    until = time.monotonic() + 20
    while workers and time.monotonic() < until:
        workers = {pid for pid in workers if Path(f"/proc/{pid}").exists()}
        time.sleep(0.05)
    assert not workers


def _employ(kind, found):
    pool = ProcessPoolExecutor(2, get_context(kind), start_worker)
    for pid in pool.map(_own_pid, range(2)):
        found.put(pid)
    time.sleep(600)


def _own_pid(_):
    time.sleep(1)  # so that both have one
    return os.getpid()
