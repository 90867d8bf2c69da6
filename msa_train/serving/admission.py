"""How much runs at once, and how much may wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from msa_train.serving.failures import ApiError

_RETRY_AFTER_S = 2


class Admission:
    """Lets `concurrent` in; up to `waiting` more wait, in order; the rest is refused with 429."""

    def __init__(self, what: str, concurrent: int, waiting: int):
        self._what, self._places, self._most = what, asyncio.Semaphore(concurrent), waiting
        self.running = self.waiting = 0

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        await self.enter()
        try:
            yield
        finally:
            self.leave()

    async def enter(self) -> None:
        """Each `enter` that returns is followed by one `leave`."""
        if self._places.locked() and self.waiting >= self._most:
            raise ApiError(
                429,
                "too_many_requests",
                f"{self.running} {self._what} run and {self.waiting} wait: ask again later",
                {"Retry-After": str(_RETRY_AFTER_S)},
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        self._places.release()
