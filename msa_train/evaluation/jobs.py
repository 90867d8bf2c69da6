"""Independent pieces of an evaluation, shared out over processes.

Answering is many small operations, which two processes of one thread do almost twice as fast as one
process of two threads. Processes are forked: model and memories are shared, nothing is copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from data_pipeline.processes import start_worker
from data_pipeline.progress import ProgressBar
from msa_train.errors import RankError
from msa_train.evaluation.metrics import Columns


@dataclass(frozen=True)
class Job:
    """part: its name for the progress bar; questions: how many `run` asks."""

    part: str
    questions: int
    run: Callable[[], Columns]


_jobs: Mapping[Hashable, Job] = {}  # what forked workers find


def run_jobs(jobs: Mapping[Hashable, Job], workers: int) -> dict[Hashable, Columns]:
    """Results by key, in the jobs' order, which is also the order they are begun in.

    Raises what a job raises, and RankError where a worker was killed.
    """
    return _here(jobs) if workers == 1 else _forked(jobs, workers)


def usable_workers(asked: int | None, device: torch.device) -> int:
    """One process per core unless told otherwise; one where an accelerator does the work."""
    if device.type != "cpu":
        return 1
    return asked or len(os.sched_getaffinity(0))


def _here(jobs: Mapping[Hashable, Job]) -> dict[Hashable, Columns]:
    results = {}
    with _progress(jobs) as progress:
        for key, job in jobs.items():
            progress.describe(job.part)
            results[key] = job.run()
            progress.advance(job.questions)
    return results


def _forked(jobs: Mapping[Hashable, Job], workers: int) -> dict[Hashable, Columns]:
    global _jobs
    _jobs, results = jobs, {}
    # One thread each: more would compete, and a forked process must not use its parent's pool.
    begin = start_worker, (torch.set_num_threads, 1)
    executor = ProcessPoolExecutor(workers, get_context("fork"), *begin)
    try:
        # Workers are forked here, before the progress bar starts a thread.
        waiting: dict[Future, Hashable] = {executor.submit(_run, key): key for key in jobs}
        with _progress(jobs) as progress:
            for future in as_completed(waiting):
                key = waiting[future]
                results[key] = future.result()
                progress.describe(jobs[key].part)
                progress.advance(jobs[key].questions)
    except BrokenProcessPool as error:
        raise RankError(
            "a process of the evaluation was killed, perhaps for want of memory: "
            "lower evaluation.workers or evaluation.batch_contexts"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
        _jobs = {}
    return {key: results[key] for key in jobs}


def _progress(jobs: Mapping[Hashable, Job]) -> ProgressBar:
    return ProgressBar("", "questions", sum(job.questions for job in jobs.values()))


def _run(key: Hashable) -> Columns:
    return _jobs[key].run()
