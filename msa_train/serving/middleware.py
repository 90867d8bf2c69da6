"""What every request passes first: where it may come from, how much it may send, how long it may
take; and the headers, the log line and the metrics of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msa_train.serving.chat_response import sse
from msa_train.serving.errors import ApiError, to_api_error
from msa_train.serving.logs import begin_request
from msa_train.serving.state import ServerState

log = logging.getLogger("msa_train.serving")

# The explorer page loads its own files and nothing else: no inline script, no frame, no other site.
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
_LEFT = 499  # in log and metrics: the client went away before its answer was whole
_SHOWN = 500  # characters of a path in the log
_LAST_WORD_S = 2.0  # for an error to reach the client
_BODIES = 16  # of the largest size, held at once by all requests together
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_ALWAYS_ANSWERED = ("/healthz", "/metrics")


class RequestGuard:
    """The ASGI application around the routes."""

    def __init__(self, app: ASGIApp, state: ServerState):
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            request = begin_request(Headers(scope=scope).get("x-request-id"))
            await self._answer(scope, receive, _Sender(send, request))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        state, task = self._state, asyncio.current_task()
        assert task is not None
        counted, began = scope["path"] not in _ALWAYS_ANSWERED, time.perf_counter()
        method, body = scope["method"], _Body(receive, state)
        if method == "HEAD":  # GET without its body, which uvicorn leaves out
            scope = {**scope, "method": "GET"}
        try:
            self._check(scope, counted)
            if counted:
                state.requests.add(task)
            async with asyncio.timeout(state.limits.timeout_s):
                await self._app(scope, body, send)
        except Exception as error:  # raised further, it would close the connection too
            if not isinstance(error, ApiError | TimeoutError):
                log.exception("a request failed: %s %r", method, scope["path"][:_SHOWN])
            await send.finish(to_api_error(error), scope, receive)
        except asyncio.CancelledError:
            if not state.stopping:
                raise
            task.uncancel()
            await send.finish(_stopped(), scope, receive)
        finally:
            state.requests.discard(task)
            body.close()
            left = send.status is None or (body.gone and not send.ended)
            status = _LEFT if left else send.status
            self._report(scope, method, status, time.perf_counter() - began)

    def _report(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = method if method in _METHODS else "other"
        self._state.metrics.requests.labels(route, method, str(status)).inc()
        level = logging.DEBUG if route in _ALWAYS_ANSWERED else logging.INFO
        log.log(level, "%s %r %d %.0f ms", method, scope["path"][:_SHOWN], status, 1000 * seconds)

    def _check(self, scope: Scope, counted: bool) -> None:
        """Raises ApiError for a request that is refused whatever it asks for."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._state.hosts:
            raise ApiError(
                403,
                "host_not_allowed",
                f"this server is not {host[:200]!r}: use localhost, or start it with --allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            raise ApiError(403, "origin_not_allowed", "pages of other sites may not ask")
        if counted and self._state.draining:
            raise _stopped()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._state.limits.body_bytes:
            raise _too_large(self._state.limits.body_bytes)


class _Body:
    """Counts the bytes that arrive: a chunked body does not declare its length, and the bodies of
    all requests together are bounded too. gone: the client has left, as far as anybody asked."""

    def __init__(self, receive: Receive, state: ServerState):
        self._receive, self._state, self._had = receive, state, 0
        self.gone = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            size, most = len(message.get("body", b"")), self._state.limits.body_bytes
            self._had += size
            self._state.held_bytes += size
            if self._had > most:
                raise _too_large(most)
            if self._state.held_bytes > _BODIES * most:
                raise ApiError(
                    429,
                    "too_many_requests",
                    "the bodies of all requests under way are too large: ask again later",
                    {"Retry-After": "2", "Connection": "close"},
                )
        return message

    def close(self) -> None:
        """Its request has ended."""
        self._state.held_bytes -= self._had


class _Sender:
    """Adds the headers that every response has, and knows what was sent. status: None before the
    response has begun. ended: it was sent whole."""

    def __init__(self, send: Send, request: str):
        self._send, self._request = send, request
        self.status: int | None = None
        self._streams = self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            headers["X-Request-Id"] = self._request
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            if self.status in (408, 413, 503):
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answers with an error; a stream that has begun ends with it. Another answer that has
        begun stays as it is, and where the client does not read: uvicorn closes the connection."""
        if self.ended or (self.status is not None and not self._streams):
            return
        with contextlib.suppress(TimeoutError):
            await self._last_word(error, scope, receive)

    async def _last_word(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        async with asyncio.timeout(_LAST_WORD_S):
            if self.status is None:
                await error.response()(scope, receive, self)
            else:
                body = sse(error.body)
                await self({"type": "http.response.body", "body": body, "more_body": False})


def _host_of(origin: str) -> str:
    """Host and port; empty for a malformed address."""
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
