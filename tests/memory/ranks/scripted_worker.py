"""A worker that does what it is told."""

import os
import signal
import time

from msa_train.memory.ranks.worker_process import run_worker


def work(channel):
    while True:
        head, tensors = channel.receive(None)
        if "says" in head:
            print(head["says"], flush=True)
        if "raises" in head:
            raise ValueError(head["raises"])
        if "sleeps" in head:
            time.sleep(head["sleeps"])
        channel.send(head | {"ignores": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
                             "threads": os.environ["OMP_NUM_THREADS"]}, tensors, None)  # fmt: skip


if __name__ == "__main__":
    run_worker(work)
