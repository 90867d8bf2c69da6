"""Blocking work beside the event loop: never waited for at exit, and told when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


async def in_thread(work: Callable[[threading.Event], T], name: str = "work") -> T:
    """`work(abandoned)` in a thread of its own; `abandoned` is set when nobody waits any more.

    Python runs no code of ours while its interpreter ends, so the threads are daemons: whatever
    they write survives their death at any moment (the bank's promise).
    """
    abandoned, results = threading.Event(), _Mailbox()

    def run() -> None:
        try:
            results.put((work(abandoned), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        result, error = await results.get()
    except BaseException:
        abandoned.set()
        raise
    if error is not None:
        raise error
    return result


async def iterated(
    source: Iterable[T], idle_s: float, name: str = "answer"
) -> AsyncIterator[T | None]:
    """The items of a blocking iterable, as they come; None whenever none came for `idle_s`."""
    items = _Mailbox()

    def run() -> None:
        try:
            for item in source:
                items.put((item, None))
            items.put((_END, None))
        except BaseException as error:
            items.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
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


class _Mailbox:
    """From any thread to the loop's."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(self, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> Any:
        return await self._queue.get()
