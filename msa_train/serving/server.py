"""A server from its socket to its last answer: start, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from functools import partial
from types import FrameType

import uvicorn

from msa_train.errors import ConfigError
from msa_train.serving.api import create_app
from msa_train.serving.connections import Connection, IdleConnections, connections_within
from msa_train.serving.state import ServerState
from msa_train.serving.threads import join_all

log = logging.getLogger("msa_train.serving")
_QUEUE = 1024  # connections that wait to be accepted
_CONNECTIONS_S = 5  # for connections to close once every request has ended
_THREADS_S = 5  # for cancelled work to notice


class Server(uvicorn.Server):
    """First signal: new requests are refused, and running ones may finish until the deadline.
    Second: it ends at once; a bank that was being written stays at its last commit."""

    def __init__(self, state: ServerState, host: str, port: int):
        limits = state.limits
        most, at_once = connections_within(limits.connections)
        connection = partial(
            Connection, idle=IdleConnections(), most=most, write_s=limits.timeout_s
        )
        if most < limits.connections:
            log.info("%d connections at once: more would need more descriptors (ulimit -n)", most)
        config = uvicorn.Config(
            create_app(state),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_CONNECTIONS_S,
            ws="none",
            http=connection,
            backlog=at_once,
        )
        super().__init__(config)
        self._state, self._signalled = state, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(_QUEUE)  # asyncio accepts `backlog` at once; more may wait
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"serving {self._state.model.name} at http://{shown}:{port}/", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + sig)
        log.info("%s: no new requests; what runs is finished", signal.Signals(sig).name)
        self.stop()

    def stop(self) -> None:
        """Begins to drain, as the first signal does; from any thread."""
        self._signalled = True
        if self._loop is None:
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = self._draining or asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            if late := await self._state.drain():
                log.warning("%d requests took too long and were cancelled", late)
        finally:
            self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError for an address that is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host.strip("[]"), port), family=family, backlog=_QUEUE)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: {why}; give another one") from error
    found.set_inheritable(True)
    return found


def run(state: ServerState, host: str, port: int) -> None:
    """Serves until a signal; returns when all has ended."""
    try:
        with listen(host, port) as listening:
            Server(state, host, port).run([listening])
    finally:
        state.engine.stop()
        state.banks.close()
    if left := join_all(_THREADS_S):
        log.warning("%d threads have not ended: the process ends without them", left)
