"""What a server holds while it runs, shared by its endpoints; and how it drains at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

from data_pipeline.protocol import earlier_pieces
from msa_train.memory.engine.engine_thread import EngineThread
from msa_train.memory.engine.interleave import Mode, usual_mode
from msa_train.serving.access import ApiKeys
from msa_train.serving.banks import Banks, ServedModel
from msa_train.serving.errors import TOO_LONG, ApiError, bad_request
from msa_train.serving.metrics import ServerMetrics
from msa_train.serving.settings import AllowedHosts, ServerLimits
from msa_train.serving.threads import GoingOn, in_thread

T = TypeVar("T")
_RETRY_AFTER_S = 2
_CHANGES = 4  # at once, of different banks: each encodes, beside the answers
_AT_ONCE = 16_384  # characters that are cut into tokens before somebody looks whether to go on
_UNSURE = 64  # tokens that such cuts may add in all
_LOOKUPS = 16  # at once: each has a thread
_SCANS = 2  # at once: look-ups that read all texts or metadata of a bank, the first time


class Admission:
    """Lets `concurrent` in; up to `waiting` more wait, in order; the rest is refused with 429."""

    def __init__(self, what: str, concurrent: int, waiting: int):
        self._what, self._places, self._most = what, asyncio.Semaphore(concurrent), waiting
        self.running = self.waiting = 0

    async def in_thread(self, work: Callable[[GoingOn], T]) -> T:
        """As threads.in_thread, once it is admitted. It has its place until it ends, whoever still
        waits for it."""
        await self.enter()
        return await in_thread(work, self.leave)

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


class ServerState:
    """Belongs to one event loop. hybrid: what chooses texts beside the router (None: nothing).
    retrieval: who names the documents unless a request says (None: as usual for the model).
    draining: new requests are refused. stopping: what still runs is cancelled."""

    def __init__(
        self,
        model: ServedModel,
        banks: Banks,
        engine: EngineThread,
        keys: ApiKeys,
        limits: ServerLimits,
        hosts: AllowedHosts,
        hybrid: str | None = None,
        retrieval: Mode | None = None,
    ):
        self.retrieval = retrieval or usual_mode(model.model.config)
        self.model, self.banks, self.engine = model, banks, engine
        self.keys, self.limits, self.hosts, self.hybrid = keys, limits, hosts, hybrid
        self.answering = Admission("answers", limits.concurrent, limits.waiting)
        self.changing = Admission("changes", _CHANGES, limits.waiting)
        self.looking = Admission("look-ups", _LOOKUPS, limits.waiting)
        self.scanning = Admission("searches through documents", _SCANS, limits.waiting)
        self.metrics = ServerMetrics(banks)
        for name, meaning, value in (
            ("msa_answers_running", "Answers in flight", lambda: self.answering.running),
            ("msa_answers_waiting", "Answers that wait", lambda: self.answering.waiting),
            ("msa_changes_running", "Changes of banks in flight", lambda: self.changing.running),
            ("msa_changes_waiting", "Changes that wait", lambda: self.changing.waiting),
        ):
            self.metrics.gauge(name, meaning, value)
        self.draining = self.stopping = False
        self.requests: set[asyncio.Task] = set()
        self.held_bytes = 0  # bodies of the requests under way
        self._longest_token, self._turn_tokens = _longest_token(model), _turn_tokens(model)

    def check_length(self, text: str, turns: int = 0) -> None:
        """Raises ApiError 400 for text, in a question and so many earlier turns, that no context
        can hold. Bytes and turns tell, before anything is tokenized."""
        size, most = len(text.encode()), self.limits.context_tokens
        if size / self._longest_token + self._turn_tokens * turns > most:
            raise self._too_long(f"{size:,} bytes in {turns + 1:,} messages")

    def check_tokens(self, texts: Iterable[str], turns: int, going_on: GoingOn) -> None:
        """Raises ApiError 400 for texts, of so many earlier turns and a question, that are clearly
        longer than a context. For a thread beside the engine's: it takes time."""
        tokens, most = self._turn_tokens * turns, self.limits.context_tokens
        for text in texts:
            for start in range(0, len(text), _AT_ONCE):
                going_on()
                part = text[start : start + _AT_ONCE]
                tokens += len(self.model.tokenizer.encode_text(part))
                if tokens > most + _UNSURE:
                    raise self._too_long(f"more than {most:,} tokens")

    def _too_long(self, size: str) -> ApiError:
        return bad_request(
            f"the conversation has {size}, and a context has room for "
            f"{self.limits.context_tokens:,} tokens (--context-tokens): ask with less text",
            TOO_LONG,
        )

    async def drain(self) -> int:
        """Waits for running requests, then cancels them; how many were cancelled."""
        self.draining = True
        if self.requests:
            await asyncio.wait(self.requests, timeout=self.limits.drain_s)
        self.stopping = True
        late = list(self.requests)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5)
        return len(late)


def _longest_token(model: ServedModel) -> int:
    """In bytes."""
    tokenizer = model.tokenizer
    return max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))


def _turn_tokens(model: ServedModel) -> int:
    """Around the text of an earlier turn, at least."""
    return len(model.tokenizer.encode_pieces(earlier_pieces([("user", "a")])).tokens) - 1
