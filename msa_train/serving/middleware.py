"""What every request passes: who may come in, how much it may send, how long it may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msa_train.serving.failures import ApiError, translated
from msa_train.serving.replies import sse
from msa_train.serving.service import Service

log = logging.getLogger("msa_train.serving")

# The page's own files and nothing else: no inline script, no frame, no other site.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LAST_WORD_S = 2.0
_BODIES = 16  # of the largest size that are held at once
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_ALWAYS_ANSWERED = ("/healthz", "/metrics")


class RequestGuard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _Sender(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        service, task = self._service, asyncio.current_task()
        assert task is not None
        counted, began = scope["path"] not in _ALWAYS_ANSWERED, time.perf_counter()
        try:
            self._check(scope, counted)
            if counted:
                service.requests.add(task)
            async with asyncio.timeout(service.limits.timeout_s):
                with contextlib.closing(_Body(receive, service)) as body:
                    await self._app(scope, body, send)
        except (ApiError, TimeoutError) as error:
            await send.finish(translated(error), scope, receive)
        except Exception as error:  # raised further, it would cost the connection too
            log.exception("a request failed: %s %s", scope["method"], scope["path"])
            await send.finish(translated(error), scope, receive)
        except asyncio.CancelledError:
            if not service.stopping:
                raise
            task.uncancel()
            await send.finish(_stopped(), scope, receive)
        finally:
            service.requests.discard(task)
            self._report(scope, send.status or 499, time.perf_counter() - began)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._service.metrics.requests.labels(route, method, str(status)).inc()
        level = logging.DEBUG if route in _ALWAYS_ANSWERED else logging.INFO
        log.log(level, "%s %r %d %.0f ms", method, scope["path"], status, 1000 * seconds)

    def _check(self, scope: Scope, counted: bool) -> None:
        """Raises ApiError for a request that is refused whatever it asks."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._service.hosts:
            raise ApiError(
                403,
                "host_not_allowed",
                f"this server is not {host[:200]!r}: use localhost, or start it with --allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            raise ApiError(403, "origin_not_allowed", "pages of other sites may not ask")
        if counted and self._service.draining:
            raise _stopped()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._service.limits.body_bytes:
            raise _too_large(self._service.limits.body_bytes)


class _Body:
    """Counts what comes: a chunked body does not say its length, and many are held at once."""

    def __init__(self, receive: Receive, service: Service):
        self._receive, self._service, self._had = receive, service, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            size, most = len(message.get("body", b"")), self._service.limits.body_bytes
            self._had += size
            self._service.held_bytes += size
            if self._had > most:
                raise _too_large(most)
            if self._service.held_bytes > _BODIES * most:
                raise ApiError(
                    429,
                    "too_many_requests",
                    "the bodies of all requests under way are too large: ask again later",
                    {"Retry-After": "2", "Connection": "close"},
                )
        return message

    def close(self) -> None:
        """Its request has ended."""
        self._service.held_bytes -= self._had


class _Sender:
    """Adds the headers of every response, and knows what was sent. status: None before it was."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None
        self._streams = self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            if self.status in (413, 503):
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answers with an error, or ends what has begun with one: of a client that does not read,
        the connection is closed."""
        if self._ended:
            return
        if self.status is not None and not self._streams:
            raise error  # the connection is closed: that is how the client learns of it
        async with asyncio.timeout(_LAST_WORD_S):
            if self.status is None:
                await error.response()(scope, receive, self)
            else:
                body = sse(error.body)
                await self({"type": "http.response.body", "body": body, "more_body": False})


def _host_of(origin: str) -> str:
    """With its port; nothing for what is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the request's body is larger than {most:,} bytes, the limit here"
    )


def _stopped() -> ApiError:
    return ApiError(503, "shutting_down", "the server is stopping", {"Retry-After": "5"})
