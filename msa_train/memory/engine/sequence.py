"""A request on its way: its conversation, what is written of it, what is reported of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor

from data_pipeline.protocol import ANSWER, IM_END, Turn, answer_request_pieces
from data_pipeline.tokenizer import TokenizedPieces, Tokenizer
from msa_train.errors import ConfigError
from msa_train.memory.engine.detokenizer import Detokenizer
from msa_train.memory.engine.events import (
    Answer,
    Chosen,
    Event,
    Evidence,
    Finished,
    RoundReport,
    Routed,
    TextPiece,
)
from msa_train.memory.engine.interleave import Interleave, InterleaveLimits, Mode, Next
from msa_train.memory.engine.sampling import Sampler, Sampling
from msa_train.memory.search.view import MemoryView

_ID_TOKENS = 20  # more than `[number]` can have
_LATER = 64  # tokens that evidence leaves for the ids of another round


@dataclass(frozen=True)
class Request:
    """A question to a view of a memory, which stays the same in all its rounds.

    instructions stand before the question, earlier turns (role, text) before the prompt: see
    data_pipeline/protocol.py. stop: strings before which the answer ends. Raises ConfigError.
    """

    question: str
    view: MemoryView
    mode: Mode = "generate"
    limits: InterleaveLimits = field(default_factory=InterleaveLimits)
    sampling: Sampling = field(default_factory=Sampling)
    instructions: str = ""
    earlier: tuple[Turn, ...] = ()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"retrieval is {self.mode!r}: give one of {', '.join(get_args(Mode))}"
            )
        if not all(self.stop):
            raise ConfigError("stop: an empty string ends every answer, give at least a character")


class Sequence:
    """A request while it is served. fed: the tokens to feed next; writing: it decodes."""

    def __init__(self, request: Request, tokenizer: Tokenizer, room: int):
        """room: tokens a context may have in all."""
        self.request, self.view = request, request.view
        self.writing = self.finished = False
        self.fed: list[int] = []
        self._tokenizer, self._room = tokenizer, room
        self._began = time.perf_counter()
        self._reports: list[RoundReport] = []
        self._sampler = Sampler(request.sampling) if request.sampling.temperature else None
        self._encoded: TokenizedPieces | None = None
        self._talk = Interleave(
            request.question,
            request.view,
            request.mode,
            request.limits,
            request.instructions,
            request.earlier,
            lambda text: len(tokenizer.encode_text(text)),
        )
        asks = tokenizer.encode_pieces(answer_request_pieces(request.question))
        self._request_tokens = len(asks.tokens)
        self._prompt_tokens = self._tokens = 0

    @property
    def awaits_vote(self) -> bool:
        return self._talk.awaits_vote

    def context(self) -> TokenizedPieces:
        """What to prefill. Raises ConfigError where it has no place."""
        if self._encoded is None:
            self._encoded = self._tokenizer.encode_pieces(self._talk.context)
            if len(self._encoded.tokens) >= self._room:
                raise too_long(len(self._encoded.tokens), self._room)
        return self._encoded

    def routed(self, chosen: Chosen) -> list[Event]:
        """A prefill is done; the model writes on, or the vote decides at once."""
        self._reports.append(RoundReport(chosen))
        events: list[Event] = [Routed(len(self._reports), chosen)]
        self.writing, self._stretch = not self.awaits_vote, self._new_stretch()
        held, self._encoded = len(self.context().tokens), None
        self._prompt_tokens = self._prompt_tokens or held
        if self.awaits_vote:
            self._talk.room = self._left(held + _ID_TOKENS * self.request.limits.documents)
            self._talk.choose([number for number, _ in chosen.voted])
            events.append(self._evidence())
        return events

    def choose(self, likeliest: int, logits: Tensor) -> int:
        """The next token from its logits [vocabulary]."""
        return likeliest if self._sampler is None else self._sampler.choose(logits)

    def write(self, token: int, room: int) -> list[Event]:
        """One more token; room: how many the context can still take. Raises ConfigError when
        what is to be fed does not fit, and what reading the evidence raises."""
        talk, stretch, stage = self._talk, self._stretch, self._talk.stage
        stretch.append(token)
        self._tokens += 1
        talk.room = self._left(self._room - room)
        control = IM_END if stretch.stopped else stretch.control
        follows = talk.wrote(stretch.text, stretch.tokens, control)
        if follows is Next.WRITE and stage == "answer" and not room:
            talk.forced.append("the context is full")
            follows = Next.STOP
        piece = stretch.new_text(ended=follows is not Next.WRITE)
        events: list[Event] = [TextPiece(stage, piece)] if piece else []
        self.fed = [token] if stretch.control is None else []
        if follows is Next.APPEND:
            self._stretch = self._new_stretch()
            self.fed += self._tokenizer.encode_pieces(talk.appended).tokens
        elif follows is not Next.WRITE:
            self.writing, self.fed = False, []
            events.append(self._evidence() if follows is Next.PREFILL else self._finish())
        if len(self.fed) > room:
            raise too_long(self._room - room + len(self.fed), self._room)
        return events

    def _left(self, held: int) -> int:
        """Room for evidence and an answer."""
        return self._room - held - self._request_tokens - _LATER

    def _new_stretch(self) -> Detokenizer:
        if self._talk.stage == "ids":
            return Detokenizer(self._tokenizer)
        return Detokenizer(self._tokenizer, self.request.stop, ANSWER)

    def _evidence(self) -> Evidence:
        past = self._talk.rounds[-1]
        numbers = tuple(document.number for document in past.evidence)
        self._reports[-1] = RoundReport(self._reports[-1].chosen, past.written, numbers)
        return Evidence(past.evidence)

    def _finish(self) -> Finished:
        self.finished = True
        talk, seconds = self._talk, time.perf_counter() - self._began
        ended = self._stretch.control is not None or self._stretch.stopped
        return Finished(
            Answer(
                talk.question,
                talk.mode,
                talk.answer,
                talk.answer_text,
                tuple(self._reports),
                tuple(talk.forced),
                seconds,
                not ended,
                self._prompt_tokens,
                self._tokens,
                self._stretch.tokens,
            )
        )


def too_long(tokens: int, limit: int) -> ConfigError:
    return ConfigError(
        f"the conversation has {tokens:,} tokens, and a context has room for {limit:,} "
        "(slot_tokens): ask with less text, fewer rounds or less evidence, or raise slot_tokens "
        "(msa serve: --context-tokens)"
    )
