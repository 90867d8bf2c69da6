"""The memory engine: questions in, routed documents and answers out, many at a time.

One loop serves a thousand questions of an evaluation and one question streamed to a person: a wave
of contexts is prefilled together, each goes on at its own pace, and those that need another round
join a later wave (every round is a full prefill with a new selection, SPEC section 4).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from data_pipeline.protocol import prompt_pieces
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.answers import (
    Answer,
    Chosen,
    Event,
    Evidence,
    Finished,
    RoundReport,
    Routed,
    TextPiece,
    chosen_documents,
)
from msa_train.memory.generation import ContextBatch, Stretch
from msa_train.memory.interleave import Conversation, Limits, Mode, Next
from msa_train.memory.search import MemoryView
from msa_train.model.decoder import MSADecoder

BATCH_CONTEXTS = 64


class MemoryEngine:
    """Asks a model questions about the documents of a view (a bank, or a part of one).

    batch_contexts: questions served at once. Greedy decoding: equal questions, equal answers.
    """

    def __init__(
        self,
        model: MSADecoder,
        tokenizer: Tokenizer,
        view: MemoryView,
        batch_contexts: int = BATCH_CONTEXTS,
    ):
        self._model, self._tokenizer, self._view = model.eval(), tokenizer, view
        self._batch_contexts = batch_contexts

    @torch.inference_mode()
    def route(self, questions: Sequence[str]) -> list[Chosen]:
        """What the first round of each question selects, without decoding."""
        chosen = []
        for start in range(0, len(questions), self._batch_contexts):
            asked = questions[start : start + self._batch_contexts]
            batch = self._prefill([prompt_pieces(question) for question in asked])
            chosen += chosen_documents(batch.readings, self._view)
        return chosen

    def ask(
        self, questions: Sequence[str], mode: Mode = "generate", limits: Limits | None = None
    ) -> list[Answer]:
        """An answer per question, in order."""
        answers: dict[int, Answer] = {}
        for index, event in self._converse(questions, mode, limits):
            if isinstance(event, Finished):
                answers[index] = event.answer
        return [answers[index] for index in range(len(questions))]

    def stream(
        self, question: str, mode: Mode = "generate", limits: Limits | None = None
    ) -> Iterator[Event]:
        """One question, as it is answered: Routed, TextPiece, Evidence, ..., at last Finished."""
        for _, event in self._converse([question], mode, limits):
            yield event

    def _converse(
        self, questions: Sequence[str], mode: Mode, limits: Limits | None
    ) -> Iterator[tuple[int, Event]]:
        turns = [
            _Turn(Conversation(question, self._view, mode, limits or Limits()))
            for question in questions
        ]
        waiting = deque(range(len(turns)))
        while waiting:
            wave = [waiting.popleft() for _ in range(min(len(waiting), self._batch_contexts))]
            yield from self._wave(wave, turns)
            waiting.extend(index for index in wave if not turns[index].finished)

    def _wave(self, wave: list[int], turns: list[_Turn]) -> Iterator[tuple[int, Event]]:
        """Prefills the contexts of a wave; each goes on until it ends or needs another prefill."""
        with torch.inference_mode():
            batch = self._prefill([turns[index].talk.context for index in wave])
            chosen = chosen_documents(batch.readings, self._view)
        for row, index in enumerate(wave):
            for event in turns[index].routed(chosen[row], batch.stretch()):
                yield index, event
        while any(turns[index].writing for index in wave):
            with torch.inference_mode():
                best = batch.best_tokens()
            fed: list[list[int]] = [[] for _ in wave]
            for row, index in enumerate(wave):
                if turns[index].writing:
                    fed[row], events = turns[index].write(best[row], batch)
                    for event in events:
                        yield index, event
            if any(fed):
                with torch.inference_mode():
                    batch.feed(fed)

    def _prefill(self, contexts: Sequence) -> ContextBatch:
        return ContextBatch(self._model, self._tokenizer, self._view.memory, contexts)


class _Turn:
    """A conversation with what is reported of it."""

    def __init__(self, talk: Conversation):
        self.talk = talk
        self.writing = self.finished = False
        self._began = time.perf_counter()
        self._reports: list[RoundReport] = []
        self._stretch: Stretch | None = None

    def routed(self, chosen: Chosen, stretch: Stretch) -> list[Event]:
        """A prefill is done; the model writes on in `stretch`, or the vote decides at once."""
        self._reports.append(RoundReport(chosen))
        events: list[Event] = [Routed(len(self._reports), chosen)]
        self._stretch, self.writing = stretch, not self.talk.awaits_vote
        if self.talk.awaits_vote:
            self.talk.choose([number for number, _ in chosen.voted])
            events.append(self._evidence())
        return events

    def write(self, token: int, batch: ContextBatch) -> tuple[list[int], list[Event]]:
        """One more token: (tokens to feed before the next, events)."""
        talk, stretch, stage = self.talk, self._stretch, self.talk.stage
        stretch.append(token)
        follows = talk.wrote(stretch.text, len(stretch.tokens), stretch.control)
        piece = stretch.new_text()
        events: list[Event] = [TextPiece(stage, piece)] if piece else []
        kept = [token] if stretch.control is None else []
        if follows is Next.WRITE:
            return kept, events
        if follows is Next.APPEND:
            self._stretch = batch.stretch()
            return kept + batch.encode(talk.appended), events
        self.writing = False
        events.append(self._evidence() if follows is Next.PREFILL else self._finish())
        return [], events

    def _evidence(self) -> Evidence:
        past = self.talk.rounds[-1]
        numbers = tuple(document.number for document in past.evidence)
        self._reports[-1] = RoundReport(self._reports[-1].chosen, past.written, numbers)
        return Evidence(past.evidence)

    def _finish(self) -> Finished:
        self.finished = True
        talk, seconds = self.talk, time.perf_counter() - self._began
        return Finished(
            Answer(
                talk.question,
                talk.mode,
                talk.answer,
                talk.answer_text,
                tuple(self._reports),
                tuple(talk.forced),
                seconds,
            )
        )
