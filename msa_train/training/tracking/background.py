"""A thread that speaks to a tracking server, so that training never waits for one."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class Background:
    """Makes calls one after the other, in the order given; handing one over never waits.

    A call that raises is said once, and later calls of its kind are not made. When `capacity`
    calls are waiting, further ones are dropped, which is said once too.
    """

    def __init__(self, capacity: int = 1000):
        self._calls: queue.Queue[tuple[str, Callable[[], Any]] | None] = queue.Queue(capacity)
        self._given_up: set[str] = set()
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def do(self, kind: str, call: Callable[[], Any]) -> None:
        try:
            self._calls.put_nowait((kind, call))
        except queue.Full:
            if not self._dropped:
                _say("W&B does not keep up: what comes now is dropped; training goes on")
            self._dropped = True

    def close(self, timeout_s: float) -> None:
        """Wait for the calls that were handed over, but no longer than timeout_s."""
        end = time.monotonic() + timeout_s
        try:
            self._calls.put(None, timeout=timeout_s)
        except queue.Full:
            pass
        else:
            self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            _say(f"W&B did not finish within {timeout_s:.0f} s: send the rest with wandb sync")

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            kind, call = item
            if kind in self._given_up:
                continue
            try:
                call()
            except Exception as error:  # tracking must never end a run
                self._given_up.add(kind)
                _say(f"W&B ({kind}): {error}; training goes on without it")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
