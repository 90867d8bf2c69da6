"""What a server is made of, shared by its endpoints; and how it comes to its end."""

from __future__ import annotations

import asyncio

from msa_train.memory.engine.engine_thread import EngineThread
from msa_train.serving.admission import Admission
from msa_train.serving.banks import Banks, ServedModel
from msa_train.serving.failures import bad_request
from msa_train.serving.keys import ApiKeys
from msa_train.serving.metrics import Metrics
from msa_train.serving.settings import AllowedHosts, ServerLimits

_CHANGES = 4  # of different banks at once: each encodes, beside the answers
_LOOKUPS = 16  # at once: each has a thread


class Service:
    """Runs on one event loop. draining: no new requests. stopping: what still runs is cancelled."""

    def __init__(
        self,
        model: ServedModel,
        banks: Banks,
        answers: EngineThread,
        keys: ApiKeys,
        limits: ServerLimits,
        hosts: AllowedHosts,
    ):
        self.model, self.banks, self.answers = model, banks, answers
        self.keys, self.limits, self.hosts = keys, limits, hosts
        self.answering = Admission("answers", limits.concurrent, limits.waiting)
        self.changing = Admission("changes", _CHANGES, limits.waiting)
        self.looking = Admission("look-ups", _LOOKUPS, limits.waiting)
        self.metrics = Metrics(banks, self.answering, self.changing)
        self.draining = self.stopping = False
        self.requests: set[asyncio.Task] = set()
        self.held_bytes = 0  # of the bodies of requests under way
        self._text_bytes = limits.context_tokens * _longest_token(model)

    def check_length(self, text: str) -> None:
        """Raises ApiError 400 for text that no context can hold: told from its bytes, before it is
        cut into tokens, for which others would wait."""
        size = len(text.encode())
        if size > self._text_bytes:
            raise bad_request(
                f"the text has {size:,} bytes, and a context has room for "
                f"{self.limits.context_tokens:,} tokens (--context-tokens): ask with less text"
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
