"""A sequence: what a request becomes while it is served."""

from __future__ import annotations

import time

from data_pipeline.protocol import ANSWER, IM_END, AnswerForm, answer_request_pieces
from data_pipeline.tokenizer import TokenizedPieces, Tokenizer
from msa_train.errors import ContextError
from msa_train.memory.engine.detokenizer import Detokenizer
from msa_train.memory.engine.events import (
    Answer,
    Event,
    Evidence,
    Finished,
    RoundReport,
    Routed,
    Selection,
    TextPiece,
)
from msa_train.memory.engine.interleave import Interleave, Next, Request
from msa_train.memory.engine.sampling import Draw, Draws

_ID_TOKENS = 20  # more than `[number]` can have
_SPARE_TOKENS = 64  # that evidence leaves for the ids of another round


class Sequence:
    """A request while it is served: its rounds, its text so far, and what it reports.

    limit: tokens that a context may have in all. decoding: it has a row of the KV cache and writes.
    pending: tokens to feed before the next one is chosen. answers: see Interleave.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        limit: int,
        answers: AnswerForm = "protocol",
    ):
        self.request, self.view = request, request.view
        self.decoding = self.finished = False
        self.pending: list[int] = []
        self._tokenizer, self._limit = tokenizer, limit
        self._began = time.perf_counter()
        self._reports: list[RoundReport] = []
        self._draws = Draws(request.sampling)
        self._detokenizer = Detokenizer(tokenizer)
        self._context: TokenizedPieces | None = None
        self._interleave = Interleave(
            request, answers, lambda text: len(tokenizer.encode_text(text))
        )
        answer_request = tokenizer.encode_pieces(answer_request_pieces(request.question))
        self._answer_request_tokens = len(answer_request.tokens)
        self._prompt_tokens = self._tokens = 0
        if request.ranking is not None:
            prompt = tokenizer.encode_pieces(self._interleave.context)
            self._choose(len(prompt.tokens), list(request.ranking))

    @property
    def awaits_vote(self) -> bool:
        return self._interleave.awaits_vote

    def context(self) -> TokenizedPieces:
        """What to prefill. Raises ContextError where it is longer than the limit."""
        if self._context is None:
            self._context = self._tokenizer.encode_pieces(self._interleave.context)
            if len(self._context.tokens) >= self._limit:
                raise too_long(len(self._context.tokens), self._limit)
        return self._context

    def prefilled(self, chosen: Selection) -> list[Event]:
        """After a prefill: the model writes on, or the vote decides at once."""
        self._reports.append(RoundReport(chosen))
        events: list[Event] = [Routed(len(self._reports), chosen)]
        self.decoding, self._detokenizer = not self.awaits_vote, self._new_detokenizer()
        length, self._context = len(self.context().tokens), None
        self._prompt_tokens = self._prompt_tokens or length
        if self.awaits_vote:
            self._choose(length, chosen.ranking)
            events.append(self._evidence())
        elif self.request.ranking is not None:
            events.append(self._evidence())
        return events

    def draw(self) -> Draw | None:
        """How its next token is drawn; None: it is the likeliest."""
        return self._draws.next()

    def append(self, token: int, room: int) -> list[Event]:
        """One more token; room: how many the context can still take.

        Raises ContextError where what is to be fed does not fit, and what reading the evidence
        raises.
        """
        interleave, written, stage = self._interleave, self._detokenizer, self._interleave.stage
        written.append(token)
        self._tokens += 1
        interleave.room = self._evidence_room(self._limit - room)
        control = IM_END if written.stopped else written.control
        rounds = len(interleave.rounds)
        follows = interleave.advance(written.text, written.tokens, control)
        if follows is Next.WRITE and stage == "answer" and not room:
            interleave.forced.append("the context is full")
            follows = Next.STOP
        piece = written.new_text(ended=follows is not Next.WRITE)
        events: list[Event] = [TextPiece(stage, piece)] if piece else []
        self.pending = [token] if written.control is None else []
        if follows is Next.APPEND:
            self._detokenizer = self._new_detokenizer()
            self.pending += self._tokenizer.encode_pieces(interleave.appended).tokens
        elif follows is not Next.WRITE:
            self.decoding, self.pending = False, []
            if follows is Next.STOP:
                events.append(self._finish())
            elif len(interleave.rounds) > rounds:  # not where the answer alone is asked for anew
                events.append(self._evidence())
        if len(self.pending) > room:
            raise too_long(self._limit - room + len(self.pending), self._limit)
        return events

    def _choose(self, prompt_tokens: int, ranking: list[int]) -> None:
        """The first documents of a ranking are read, as far as there is room for them."""
        ids = _ID_TOKENS * self.request.limits.documents
        self._interleave.room = self._evidence_room(prompt_tokens + ids)
        self._interleave.choose(ranking)

    def _evidence_room(self, length: int) -> int:
        """Tokens left for evidence and an answer in a context of this length."""
        return self._limit - length - self._answer_request_tokens - _SPARE_TOKENS

    def _new_detokenizer(self) -> Detokenizer:
        if self._interleave.stage == "ids":
            return Detokenizer(self._tokenizer)
        return Detokenizer(self._tokenizer, self.request.stop, ANSWER)

    def _evidence(self) -> Evidence:
        past = self._interleave.rounds[-1]
        numbers = tuple(document.number for document in past.evidence)
        self._reports[-1] = RoundReport(self._reports[-1].chosen, past.written, numbers)
        return Evidence(past.evidence)

    def _finish(self) -> Finished:
        self.finished = True
        interleave = self._interleave
        return Finished(
            Answer(
                self.request.question,
                self.request.mode,
                interleave.answer,
                interleave.answer_text,
                tuple(self._reports),
                tuple(interleave.forced),
                time.perf_counter() - self._began,
                not self._detokenizer.ended,
                self._prompt_tokens,
                self._tokens,
                self._detokenizer.tokens,
                tuple(self._detokenizer.ids),
            )
        )


def too_long(tokens: int, limit: int) -> ContextError:
    return ContextError(
        f"the conversation has {tokens:,} tokens, and a context has room for {limit:,} "
        "(slot_tokens): ask with less text, fewer rounds or less evidence, or raise slot_tokens "
        "(msa serve: --context-tokens)"
    )
