"""The memory engine: questions in, selected documents and answers out, many at a time.

Runs a Scheduler in the caller's thread, for the thousand questions of an evaluation or for one that
is streamed to a person. A server, whose requests come from many threads, uses engine_thread.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.protocol import prompt_pieces
from data_pipeline.tokenizer import Tokenizer
from msa_train.memory.engine.events import Answer, Event, Failed, Finished, Selection, selections
from msa_train.memory.engine.interleave import InterleaveLimits, Mode, Request
from msa_train.memory.engine.model_runner import prefill_pieces
from msa_train.memory.engine.sampling import Sampling
from msa_train.memory.engine.scheduler import Scheduler
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder

BATCH_CONTEXTS = 64
CONTEXT_TOKENS = 32768  # of one context; memory is taken as it is needed
PREFILL_TOKENS = 1 << 16


class MemoryEngine:
    """Asks a model questions about the documents of a view (a bank, or a part of one).

    batch_contexts: questions served at once; answers do not depend on it.
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

    def route(self, questions: Sequence[str]) -> list[Selection]:
        """What the first round of each question selects, without decoding."""
        found = []
        for start in range(0, len(questions), self._batch_contexts):
            batch = questions[start : start + self._batch_contexts]
            prompts = [prompt_pieces(question) for question in batch]
            prefill = prefill_pieces(self._model, self._tokenizer, self._view, prompts)
            found += selections(prefill.selected, self._view)
        return found

    def ask(
        self,
        questions: Sequence[str],
        mode: Mode = "generate",
        limits: InterleaveLimits | None = None,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """An answer per question, in order. Raises the error of the first that fails."""
        return self.answer([self._request(each, mode, limits, sampling) for each in questions])

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The same of requests, which may have instructions, earlier turns and stop strings."""
        answers: dict[int, Answer] = {}
        for ticket, event in self._events(requests):
            if isinstance(event, Finished):
                answers[ticket] = event.answer
        return [answers[ticket] for ticket in sorted(answers)]

    def stream(
        self,
        question: str,
        mode: Mode = "generate",
        limits: InterleaveLimits | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """The events of one question: Routed, TextPiece, Evidence, ..., at last Finished.

        Raises its error where it fails.
        """
        for _, event in self._events([self._request(question, mode, limits, sampling)]):
            yield event

    def _request(
        self,
        question: str,
        mode: Mode,
        limits: InterleaveLimits | None,
        sampling: Sampling | None,
    ) -> Request:
        return Request(
            question, self._view, mode, limits or InterleaveLimits(), sampling or Sampling()
        )

    def _events(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        if not requests:
            return
        scheduler = Scheduler(
            self._model,
            self._tokenizer,
            min(self._batch_contexts, len(requests)),
            CONTEXT_TOKENS,
            PREFILL_TOKENS,
            together=True,
        )
        for request in requests:
            scheduler.submit(request)
        while scheduler.busy:
            for ticket, event in scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
                yield ticket, event
