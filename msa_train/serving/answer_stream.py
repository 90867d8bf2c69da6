"""One answer on its way from the engine to a client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from threading import Event as Flag
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from msa_train.memory.engine.engine_thread import Stream
from msa_train.memory.engine.events import Event, Evidence, Finished, Routed, TextPiece
from msa_train.memory.engine.sequence import Request
from msa_train.memory.search.view import MemoryView
from msa_train.serving.banks import ServedBank
from msa_train.serving.changes import named_errors
from msa_train.serving.chat import ChatRequest
from msa_train.serving.failures import ApiError, translated
from msa_train.serving.lookup import restricted
from msa_train.serving.replies import Reply, sse
from msa_train.serving.service import Service
from msa_train.serving.threads import in_thread, iterated

log = logging.getLogger("msa_train.serving")

_IDLE_S = 10.0  # a comment is sent: whoever went away without a word is noticed
T = TypeVar("T")


class AnswerStream:
    """Begun, it holds a place among the running answers until it is closed."""

    def __init__(self, service: Service, asked: ChatRequest, bank: ServedBank):
        self._service, self._asked, self._bank = service, asked, bank
        self._arrived = self._since = time.perf_counter()
        self._stream: Stream | None = None
        self._entered = self._began_answer = False
        self.reply = Reply(service.model.name, bank.name)

    async def begin(self) -> None:
        """Waits for a place. Raises ApiError 429 where too many wait."""
        await self._service.answering.enter()
        self._entered = True
        try:
            view = await in_thread(self._view)
            self._since = time.perf_counter()
            self._stream = self._service.answers.submit(self._request(view))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the place back; an answer that is not finished is cancelled."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
        if self._entered:
            self._entered = False
            self._service.answering.leave()

    async def whole(self) -> dict[str, Any]:
        async for event in self._events():
            if event is not None:
                self.reply.take(event)
        return self.reply.completion()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Events of a text/event-stream, the closing one among them."""
        reply = self.reply
        yield sse(reply.chunk({"role": "assistant", "content": ""}, **self._usage))
        async for event in self._events():
            if event is None:
                yield b": still at work\n\n"
                continue
            for part in reply.take(event):
                delta = {"content": part.pop("content")} if "content" in part else {}
                yield sse(reply.chunk(delta, **part, **self._usage))
        yield sse(reply.chunk({}, reply.finish_reason, **self._usage))
        if self._asked.includes_usage:
            yield sse(reply.usage_chunk())
        yield sse("[DONE]")

    @property
    def _usage(self) -> dict[str, None]:
        """Chunks name the field where the last one has it, as OpenAI's do."""
        return {"usage": None} if self._asked.includes_usage else {}

    async def _events(self) -> AsyncIterator[Event | None]:
        """None where nothing came for a while. Raises ApiError where the answer is cut off."""
        assert self._stream is not None
        finished = False
        with named_errors(self._bank):
            async for event in iterated(self._stream, _IDLE_S):
                self._measure(event)
                finished = finished or isinstance(event, Finished)
                yield event
        if not finished:
            raise ApiError(500, "no_answer", "the answer ended before it was complete")

    def _measure(self, event: Event | None) -> None:
        metrics, now = self._service.metrics, time.perf_counter()
        if isinstance(event, Routed):
            metrics.routing.observe(now - self._since)
        elif isinstance(event, Evidence):
            self._since = now
        elif isinstance(event, TextPiece) and event.stage == "answer" and not self._began_answer:
            self._began_answer = True
            metrics.first_token.observe(now - self._arrived)
        elif isinstance(event, Finished):
            metrics.answer.observe(now - self._arrived)
            metrics.tokens.inc(event.answer.tokens)

    def _view(self, _: Flag) -> MemoryView:
        with named_errors(self._bank):
            return restricted(self._bank.view(), self._asked.options.filter)

    def _request(self, view: MemoryView) -> Request:
        asked = self._asked
        return Request(
            asked.question,
            view,
            asked.options.retrieval,
            asked.limits(self._service.limits.answer_tokens),
            asked.sampling,
            asked.instructions,
            asked.earlier,
            asked.stops,
        )


class EventStream(Response):
    """The response that streams a conversation: an error as its status, until it has begun."""

    def __init__(self, conversation: AnswerStream):
        super().__init__()
        self._conversation = conversation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._answer(send))
        finally:
            self._conversation.close()

    async def _answer(self, send: Send) -> None:
        await self._conversation.begin()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"x-accel-buffering", b"no")]  # a proxy would hold back what should stream
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._conversation.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            told = translated(error)
            log.log(
                logging.ERROR if told.status >= 500 else logging.INFO,
                "an answer failed: %s",
                error,
                exc_info=told.code == "internal_error",
            )
            await send({"type": "http.response.body", "body": sse(told.body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """`work`, cancelled when the client goes away. Raises ClientGone then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class ClientGone(ApiError):
    """Nobody is there to be answered."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "the client went away")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
