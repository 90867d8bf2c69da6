import os
import signal

import numpy as np
import pytest
import torch

from msa_train.errors import RankError
from msa_train.evaluation.jobs import Job, run_jobs, usable_workers


def jobs(run):
    return {key: Job("part", 1, lambda key=key: run(key)) for key in range(5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_back_in_order(workers):
    results = run_jobs(jobs(lambda key: {"value": np.array([key])}), workers)
    assert [(key, int(found["value"][0])) for key, found in results.items()] == [
        (key, key) for key in range(5)
    ]


def test_workers_are_other_processes_of_one_thread():
    def where(key):
        return {"at": np.array([os.getpid(), torch.get_num_threads()])}

    seen = [found["at"].tolist() for found in run_jobs(jobs(where), 2).values()]
    assert os.getpid() not in {pid for pid, _ in seen}
    assert {threads for _, threads in seen} == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised(workers):
    def fail(key):
        raise ValueError(f"job {key}")

    with pytest.raises(ValueError, match="job"):
        run_jobs(jobs(fail), workers)


def test_a_killed_worker_is_an_error_and_no_hang():
    with pytest.raises(RankError, match=r"evaluation\.workers"):
        run_jobs(jobs(lambda key: os.kill(os.getpid(), signal.SIGKILL)), 2)


def test_workers_of_a_device():
    assert usable_workers(3, torch.device("cpu")) == 3
    assert usable_workers(None, torch.device("cpu")) == len(os.sched_getaffinity(0))
    assert usable_workers(3, torch.device("cuda")) == 1
