"""OpenAI's endpoints: models, and chat completions, whole or as a stream of the engine's events.

A chat request in reading order: the route, AnswerStream (its place, its memory, its events), and
EventStream where the client asked for a stream. chat_request.py is what comes in, chat_response.py
what goes out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from msa_train.memory.engine import interleave
from msa_train.memory.engine.engine_thread import Stream
from msa_train.memory.engine.events import Answer, Event, Evidence, Finished, Routed, TextPiece
from msa_train.memory.search.view import MemoryView
from msa_train.serving.access import json_body, requires, while_connected
from msa_train.serving.banks import ServedBank
from msa_train.serving.chat_request import ChatRequest, chat_request
from msa_train.serving.chat_response import ChatResponse, sse
from msa_train.serving.errors import ApiError, ClientGone, to_api_error
from msa_train.serving.lookup import restricted
from msa_train.serving.state import ServerState
from msa_train.serving.threads import GoingOn, in_thread, iterated

log = logging.getLogger("msa_train.serving")

MEMORY_HEADER = "x-msa-memory"
_IDLE_S = 10.0  # then a comment is sent: a client that vanished without a word is noticed


def routes(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[requires(state.keys, "read")])
    model = {
        "id": state.model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "msa",
    }

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != model["id"]:
            raise ApiError(404, "model_not_found", f"there is no model {name!r}")
        return model

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        asked = chat_request(await json_body(request), state.model.name)
        state.check_length(asked.all_text, len(asked.earlier))
        answer = AnswerStream(state, asked, state.banks[asked.options.bank])
        if asked.stream:
            return EventStream(answer)
        try:
            whole = await while_connected(request.receive, answer.whole())
            return JSONResponse(whole, headers={MEMORY_HEADER: answer.summary()})
        finally:
            answer.close()

    return router


class AnswerStream:
    """One answer on its way from the engine to a client. From `begin` until `close` it holds a
    place among the running answers."""

    def __init__(self, state: ServerState, asked: ChatRequest, bank: ServedBank):
        self._state, self._asked, self._bank = state, asked, bank
        self._arrived = self._round_began = time.perf_counter()
        self._stream: Stream | None = None
        self._nothing: list[Event] | None = None  # the answer where there is no document
        self._entered = self._text_began = False
        self._mode = asked.options.retrieval or state.retrieval
        self._response = ChatResponse(state.model.name, bank.name)

    async def begin(self) -> None:
        """Waits for a place. Raises ApiError 429 where too many wait."""
        await self._state.answering.enter()
        self._entered = True
        try:
            view = await in_thread(self._view)
            self._round_began = time.perf_counter()
            if len(view):
                self._stream = self._state.engine.submit(self._engine_request(view))
            else:
                self._nothing = self._unasked()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the place back; an unfinished answer is cancelled."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
        if self._entered:
            self._entered = False
            self._state.answering.leave()

    async def whole(self) -> dict[str, Any]:
        """Begins, and waits for the whole answer: a chat.completion."""
        await self.begin()
        async for event in self._events():
            if event is not None:
                self._response.take(event)
        return self._response.completion()

    def summary(self) -> str:
        """The memory's part of a whole answer in one line, for clients that drop unknown fields."""
        return json.dumps(self._response.summary(), separators=(",", ":"))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Events of a text/event-stream, [DONE] included; `begin` comes first."""
        response = self._response
        yield sse(response.chunk({"role": "assistant", "content": ""}, **self._usage))
        async for event in self._events():
            if event is None:
                yield b": still at work\n\n"
                continue
            for part in response.take(event):
                delta = {"content": part.pop("content")} if "content" in part else {}
                yield sse(response.chunk(delta, **part, **self._usage))
        yield sse(response.chunk({}, response.finish_reason, **self._usage))
        if self._asked.includes_usage:
            yield sse(response.usage_chunk())
        yield sse("[DONE]")

    @property
    def _usage(self) -> dict[str, None]:
        """Where the last chunk has a usage, all others name the field too, as OpenAI's do."""
        return {"usage": None} if self._asked.includes_usage else {}

    async def _events(self) -> AsyncIterator[Event | None]:
        """None whenever nothing came for a while. Raises ApiError for an answer cut off."""
        for event in self._nothing or ():
            yield event
        if self._nothing is not None:
            return
        assert self._stream is not None
        finished = False
        with self._bank.named_errors():
            async for event in iterated(self._stream, _IDLE_S):
                self._measure(event)
                finished = finished or isinstance(event, Finished)
                yield event
        if not finished:
            raise ApiError(500, "no_answer", "the answer ended before it was complete")

    def _unasked(self) -> list[Event]:
        """The answer where no document can be read: a model would invent one."""
        asked, mode = self._asked, self._mode
        matches = "matches the filter" if asked.options.filter else "is in it yet"
        text = (
            f"There is nothing to answer from in bank {self._bank.name!r}: no document {matches}."
        )
        seconds = time.perf_counter() - self._arrived
        answer = Answer(asked.question, mode, text, text, (), (), seconds, unasked=True)
        return [TextPiece("answer", text), Finished(answer)]

    def _measure(self, event: Event | None) -> None:
        metrics, now = self._state.metrics, time.perf_counter()
        if isinstance(event, Routed):
            metrics.routing.observe(now - self._round_began)
        elif isinstance(event, Evidence):
            self._round_began = now
        elif isinstance(event, TextPiece) and event.stage == "answer" and not self._text_began:
            self._text_began = True
            metrics.first_token.observe(now - self._arrived)
        elif isinstance(event, Finished):
            metrics.answer.observe(now - self._arrived)
            metrics.tokens.inc(event.answer.tokens)

    def _view(self, going_on: GoingOn) -> MemoryView:
        """Also counts the conversation's tokens, which would stop all answers in the engine's
        thread."""
        asked = self._asked
        texts = asked.question, asked.instructions, *(text for _, text in asked.earlier)
        self._state.check_tokens(texts, len(asked.earlier), going_on)
        with self._bank.named_errors():
            return restricted(self._bank.view(), asked.options.filter)

    def _engine_request(self, view: MemoryView) -> interleave.Request:
        asked = self._asked
        return interleave.Request(
            asked.question,
            view,
            self._mode,
            asked.limits(self._state.limits.answer_tokens),
            asked.sampling,
            asked.instructions,
            asked.earlier,
            asked.stops,
        )


class EventStream(Response):
    """The response that streams an answer. Until it has begun, an error is the response's status;
    then it is the last event."""

    def __init__(self, answer: AnswerStream):
        super().__init__()
        self._stream = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._answer(send))
        except ClientGone:
            pass  # nobody is there to be told, and the response may have begun
        finally:
            self._stream.close()

    async def _answer(self, send: Send) -> None:
        await self._stream.begin()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"x-accel-buffering", b"no")]  # or a proxy would hold back what should stream
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._stream.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            api_error = to_api_error(error)
            log.log(
                logging.ERROR if api_error.status >= 500 else logging.INFO,
                "an answer failed: %s",
                error,
                exc_info=api_error.code == "internal_error",
            )
            last = sse(api_error.body)
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
