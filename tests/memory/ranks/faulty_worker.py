"""A worker that fails where a test asks it to, by the number of documents it is asked for."""

import os
import signal
import time

from msa_train.memory.ranks import search_worker as worker

RAISES, SLEEPS, DIES_BEFORE_SENDING, STOPS_BEFORE_SENDING = 1001, 1002, 1003, 1004
_SIGNALS = {DIES_BEFORE_SENDING: signal.SIGKILL, STOPS_BEFORE_SENDING: signal.SIGSTOP}


class Holdings(worker.Holdings):
    def best(self, head, tensors, query):
        if head["k"] == RAISES:
            raise RuntimeError("as it was asked to")
        if head["k"] == SLEEPS:
            time.sleep(3600)
        if head["k"] in _SIGNALS:
            worker.Exchange.send = lambda *_: os.kill(os.getpid(), _SIGNALS[head["k"]])
        return super().best(head, tensors, query)


worker.Holdings = Holdings

if __name__ == "__main__":
    worker.run_worker(worker.work)
