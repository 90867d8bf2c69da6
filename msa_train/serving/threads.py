"""Blocking work in threads beside the event loop. A thread can ask whether anybody still waits for
it, and the process ends without it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from msa_train.serving.errors import ClientGone

GoingOn = Callable[[], None]  # asked now and then by long work: raises where it is to stop
T = TypeVar("T")
_END = object()
_running: set[threading.Thread] = set()


async def in_thread(work: Callable[[GoingOn], T], ended: Callable[[], None] = lambda: None) -> T:
    """`work(going_on)` in a thread of its own; going_on raises ClientGone when nobody waits any
    more. ended: called in the event loop when the work has ended, also long after that.

    The threads are daemons, which the interpreter's end stops anywhere: what they write must
    survive that at any moment, and a bank does.
    """
    abandoned, loop = threading.Event(), asyncio.get_running_loop()

    def going_on() -> None:
        if abandoned.is_set():
            raise ClientGone

    def whole(going_on: GoingOn) -> T:
        try:
            return work(going_on)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended)

    try:
        results = _started(map(whole, [going_on]))
    except RuntimeError:  # there are too many threads
        ended()
        raise
    try:
        result, error = await results.get()
    except BaseException:
        abandoned.set()
        raise
    if error is not None:
        raise error
    return result


async def iterated(source: Iterable[T], idle_s: float) -> AsyncIterator[T | None]:
    """The items of a blocking iterable, as they come; None whenever none came for `idle_s`."""
    items = _started(source)
    while True:
        try:
            async with asyncio.timeout(idle_s):
                item, error = await items.get()
        except TimeoutError:
            yield None
            continue
        if error is not None:
            raise error
        if item is _END:
            return
        yield item


def join_all(seconds: float) -> int:
    """Waits for the threads that still run; how many do afterwards."""
    end = time.monotonic() + seconds
    for thread in list(_running):
        thread.join(max(end - time.monotonic(), 0))
    return sum(thread.is_alive() for thread in list(_running))


def _started(source: Iterable[Any]) -> _Mailbox:
    """A thread that hands over pairs: an item and None; at last _END and None, or None and the
    error."""
    mailbox = _Mailbox()

    def run() -> None:
        try:
            for item in source:
                mailbox.put((item, None))
            mailbox.put((_END, None))
        except BaseException as error:
            mailbox.put((None, error))
        finally:
            _running.discard(threading.current_thread())

    thread = threading.Thread(target=run, name="msa-serving", daemon=True)
    _running.add(thread)
    thread.start()
    return mailbox


class _Mailbox:
    """Hands items from any thread to the event loop."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(self, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> Any:
        return await self._queue.get()
