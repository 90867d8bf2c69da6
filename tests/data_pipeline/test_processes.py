import os
import signal
import time
from multiprocessing import get_context

import pytest

from data_pipeline.errors import DataError
from data_pipeline.processes import workers_of


def test_a_worker_that_starts_while_another_dies_is_not_waited_for():
    died = pytest.raises(DataError, match="a process that builds shards died")
    with died, workers_of(1) as pool:
        late = get_context("spawn").Process(target=time.sleep, args=(600,))
        late.start()
        pool.submit(os._exit, 1).result()
    late.join(10)
    assert late.exitcode == -signal.SIGKILL
