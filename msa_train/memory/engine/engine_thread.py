"""A Scheduler in a thread of its own: requests from any thread, a stream of events for each."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator

from msa_train.errors import MSAError
from msa_train.memory.engine.events import Event, Failed, Finished
from msa_train.memory.engine.interleave import Request
from msa_train.memory.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

EVENT_TIMEOUT_S = 600.0
_STEP_S = 30.0  # how long a step may take after the thread was told to stop


class EngineStopped(MSAError):
    """The engine takes no more requests: it was stopped, or an error ended it."""


class Stream:
    """The events of one request, for one reader."""

    def __init__(self, engine: EngineThread, timeout_s: float):
        self._engine, self._timeout_s = engine, timeout_s
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        """Until Finished, or until it is cancelled. Raises the error of Failed, and TimeoutError
        where no event comes in time; then the request goes on."""
        while True:
            try:
                event = self._events.get(timeout=self._timeout_s)
            except queue.Empty:
                problem = f"no event of the answer within {self._timeout_s:g} s"
                raise TimeoutError(problem) from None
            if event is None:
                return
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Finished):
                return

    def cancel(self) -> None:
        """Ends the request and its events; does nothing where it has ended."""
        self._engine._put(None, self)
        self._events.put(None)


class EngineThread:
    """Runs a scheduler in a thread. An error of one request ends that request; an error of the
    scheduler itself ends all of them, each with Failed and the reason. Any number of requests may
    wait: the caller limits them."""

    def __init__(self, scheduler: Scheduler, event_timeout_s: float = EVENT_TIMEOUT_S):
        self._scheduler, self._timeout_s = scheduler, event_timeout_s
        self._changed = threading.Condition()
        self._inbox: list[tuple[Request | None, Stream]] = []  # None: cancel
        self._streams: dict[int, Stream] = {}
        self._end_by: float | None = None  # once it was told to stop
        self._ended: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Stream:
        """Raises EngineStopped where the engine takes no more requests."""
        stream = Stream(self, self._timeout_s)
        self._put(request, stream)
        return stream

    def stop(self, drain_s: float = 0.0) -> None:
        """Takes no more requests; those that run have drain_s seconds to end, then they fail.

        Returns when the thread has ended, or logs that it does not end.
        """
        with self._changed:
            self._end_by = time.monotonic() + drain_s
            self._changed.notify()
        self._thread.join(drain_s + _STEP_S)
        if self._thread.is_alive():
            log.error("a step of the scheduler has not ended within %g s", _STEP_S)
            self._fail_all(EngineStopped("the service was stopped while a step did not end"))

    def _put(self, request: Request | None, stream: Stream) -> None:
        with self._changed:
            if request is not None and (self._ended or self._end_by is not None):
                reason = self._ended or "it was stopped"
                raise EngineStopped(f"the service takes no more requests: {reason}")
            if self._ended:
                return  # nothing runs that could be cancelled
            self._inbox.append((request, stream))
            self._changed.notify()

    def _run(self) -> None:
        reason: Exception = EngineStopped("the service was stopped before the answer was complete")
        try:
            while self._step():
                pass
        except Exception as error:
            log.exception("the scheduler failed")
            reason = error
        finally:
            self._fail_all(reason)

    def _step(self) -> bool:
        """Whether to go on. A function of its own: an idle thread holds no request, no snapshot."""
        messages = self._next_messages()
        if messages is None:
            return False
        for request, stream in messages:
            if request is None:
                self._cancel(stream)
            else:
                self._start(request, stream)
        for ticket, event in self._scheduler.step():
            self._streams[ticket]._events.put(event)
            if isinstance(event, Finished | Failed):
                del self._streams[ticket]
        return True

    def _next_messages(self) -> list[tuple[Request | None, Stream]] | None:
        """What came since; waits while there is nothing to do. None: it is time to end."""
        with self._changed:
            while not (self._inbox or self._scheduler.busy or self._end_by is not None):
                self._changed.wait()
            if self._end_by is not None:
                idle = not self._inbox and not self._scheduler.busy
                if idle or time.monotonic() >= self._end_by:
                    return None
            messages, self._inbox = self._inbox, []
            return messages

    def _start(self, request: Request, stream: Stream) -> None:
        try:
            self._streams[self._scheduler.submit(request)] = stream
        except Exception as error:  # its alone: a question that is not valid text, for example
            stream._events.put(Failed(error))

    def _cancel(self, stream: Stream) -> None:
        for ticket in [ticket for ticket, each in self._streams.items() if each is stream]:
            self._scheduler.cancel(ticket)
            del self._streams[ticket]

    def _fail_all(self, reason: Exception) -> None:
        with self._changed:
            self._ended = reason
            waiting = [stream for request, stream in self._inbox if request is not None]
            running, self._inbox = list(self._streams.values()), []
        for stream in (*running, *waiting):
            stream._events.put(Failed(reason))
