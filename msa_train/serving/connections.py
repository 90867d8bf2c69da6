"""Connections, over uvicorn's HTTP/1.1: deadlines, and a limit that idle clients cannot use up.

uvicorn has a deadline for the time between two requests alone, and its limit of connections refuses
requests while it keeps whoever is silent.
"""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # from a connection, or a head's first byte, to the head's last byte
_SHARE = 2  # one of so many free descriptors is a connection's; the rest are for banks' files
_TURNS = 16  # of the loop until as many are accepted as there may be


def connections_within(asked: int) -> tuple[int, int]:
    """How many connections fit the descriptors that this process may still open, `asked` at most;
    and how many may be accepted before others are closed for them.

    From a connection's acceptance to its request, and to the closing of another for it, the loop
    turns four times: those that are accepted meanwhile must neither take all descriptors nor push
    out one that is about to ask.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = asked
    if allowed != resource.RLIM_INFINITY:
        most = min(asked, max(allowed - len(os.listdir("/dev/fd")), 2) // _SHARE)
    return most, max(1, most // _TURNS)


class IdleConnections:
    """Connections on which no request is under way, the longest idle first."""

    def __init__(self) -> None:
        self._silent: dict[Connection, None] = {}  # that have had no answer yet
        self._kept: dict[Connection, None] = {}

    def add(self, connection: Connection, answered: bool) -> None:
        (self._kept if answered else self._silent)[connection] = None

    def discard(self, connection: Connection) -> None:
        self._silent.pop(connection, None)
        self._kept.pop(connection, None)

    def close_one(self) -> None:
        """Of those that never asked, if there is one."""
        for connection in self._silent or self._kept:
            self.discard(connection)
            connection.transport.close()
            return


class Connection(H11Protocol):
    """One connection. most: of the whole server; a new one closes the longest idle, or is closed
    itself where none is idle. write_s: how long a client may leave what it is sent unread."""

    def __init__(self, idle: IdleConnections, most: int, write_s: float, **given: Any):
        super().__init__(**given)
        self._idle, self._most, self._write_s = idle, most, write_s
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        self._idle.add(self, answered=False)
        if len(self.connections) > self._most:
            self._idle.close_one()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy:
            self._idle.discard(self)
            self._head = _cancelled(self._head)
        elif self._head is None:  # the next head, or the rest of a body that nobody reads
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._busy and not self.transport.is_closing():
            self._idle.add(self, answered=True)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = _cancelled(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._idle.discard(self)
        self._head, self._unread = _cancelled(self._head), _cancelled(self._unread)

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_S, self.transport.close)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
