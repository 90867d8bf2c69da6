"""Several processes that build a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from data_pipeline.errors import DataError


class InterruptedBuild(DataError):
    """A build stopped half-way for a reason outside its settings: it may be taken up again."""


@contextmanager
def workers_of(count: int, *start: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block; start: a function that each runs first, its arguments.

    Raises InterruptedBuild when one of them dies.
    """
    others = active_children()
    pool = ProcessPoolExecutor(count, get_context("spawn"), *start)
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
