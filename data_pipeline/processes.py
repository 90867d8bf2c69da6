"""Several processes that work for one, and end with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from data_pipeline.errors import DataError


class InterruptedBuild(DataError):
    """A build stopped half-way for a reason outside its settings: it may be taken up again."""


def start_worker(prepare: Callable[..., Any] | None = None, *arguments: Any) -> None:
    """What a process of a pool runs first: it ends when its parent does, however that died, and
    does what `prepare` says."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # a worker has one
    parent.join()
    os._exit(1)


@contextmanager
def workers_of(
    count: int, prepare: Callable[..., Any] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, or with this process; each runs `prepare` first.

    Raises InterruptedBuild when one of them dies.
    """
    others = active_children()
    pool = ProcessPoolExecutor(count, get_context("spawn"), start_worker, (prepare, *arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        # The pool stops its workers when one dies, but may wait forever for one that was starting.
        for process in active_children():
            if process not in others:
                process.kill()
        raise InterruptedBuild(
            "a process that builds shards died (out of memory?): lower data.workers and build "
            "again; what is done is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
