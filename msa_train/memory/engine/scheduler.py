"""Continuous batching: requests in different rounds, of different memories, side by side.

Every step prefills what waits (new requests, and those whose next round is a full prefill, SPEC
section 4) as far as there is room. Those that ask the same view are prefilled together, so that
routing them is one search. Then every sequence that decodes writes one more token. A request that
ends gives its slot, a row of the KV cache, to the next one at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, count
from typing import TypeVar

from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import RankError
from msa_train.memory.engine.events import Event, Failed, selections
from msa_train.memory.engine.hybrid import with_words
from msa_train.memory.engine.interleave import Request
from msa_train.memory.engine.model_runner import ModelRunner, prefill_encoded
from msa_train.memory.engine.sequence import Sequence
from msa_train.model.decoder import MSADecoder

PREFILL_TOKENS = 8192

T = TypeVar("T")
TicketEvents = list[tuple[int, Event]]  # (ticket, what happened)


class Scheduler:
    """Serves requests. It has no thread of its own: its holder calls `step` while it is `busy`.

    slots: sequences that decode at once; slot_tokens: the length that each may have.
    prefill_tokens: how much a step may prefill (one context at least), so that those that decode do
    not wait for long. together: all requests come at once and nobody waits for a first token (an
    evaluation): it prefills only when at least as many can be prefilled as decode, for fewer
    searches, and takes memory as it is needed. chunks: that a context usually reads.

    What runs beside a request does not change its answer. An error in a prefill, or in reading a
    document, fails the requests concerned (event Failed); an error in a decode step is raised.
    """

    def __init__(
        self,
        model: MSADecoder,
        tokenizer: Tokenizer,
        slots: int,
        slot_tokens: int,
        prefill_tokens: int = PREFILL_TOKENS,
        together: bool = False,
        chunks: int = 0,
    ):
        self._model, self._tokenizer = model.eval(), tokenizer
        self._slot_tokens, self._prefill_tokens = slot_tokens, prefill_tokens
        self._together = together
        self._runner = ModelRunner(model, slots, slot_tokens, not together, chunks)
        self._tickets = count()
        self._sequences: dict[int, Sequence] = {}
        self._new: deque[int] = deque()  # tickets that wait for their first prefill
        self._continued: deque[int] = deque()  # that wait for another round: before the new ones
        self._rows: list[int] = []  # the ticket in each row of the KV cache

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._runner.cache_bytes

    def capture(self) -> int:
        """As ModelRunner.capture."""
        return self._runner.capture()

    @property
    def busy(self) -> bool:
        return bool(self._sequences)

    @property
    def waiting(self) -> int:
        """Requests that wait for a prefill."""
        return len(self._new) + len(self._continued)

    def submit(self, request: Request) -> int:
        """Adds a request; its events carry the ticket that is returned."""
        ticket = next(self._tickets)
        self._sequences[ticket] = Sequence(
            request, self._tokenizer, self._slot_tokens, self._model.config.answers
        )
        self._new.append(ticket)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Ends a request without an event; does nothing where it has ended."""
        if self._sequences.pop(ticket, None) is None:
            return
        if ticket in self._rows:
            self._leave(self._rows.index(ticket))
        for queue in (self._new, self._continued):
            if ticket in queue:
                queue.remove(ticket)

    def step(self) -> TicketEvents:
        """One round of prefills, then one token of every sequence; what happened, in order."""
        events: TicketEvents = []
        for tickets in self._next_prefills(events):
            self._prefill(tickets, events)
        if self._rows:
            self._choose_tokens(events)
            if self._rows:
                self._runner.feed([self._sequences[ticket].pending for ticket in self._rows])
        return events

    def _next_prefills(self, events: TicketEvents) -> list[list[int]]:
        """Takes what fits from the queues, in order, grouped by view."""
        free, room = self._runner.free, self._prefill_tokens
        if not self.waiting:
            return []
        if self._together and min(free, self.waiting) < len(self._rows):
            return []
        groups: dict[int, list[int]] = {}
        for ticket in [*self._continued, *self._new]:
            sequence = self._sequences[ticket]
            context = self._guarded(ticket, events, sequence.context)
            if context is None:
                continue
            size, needs_row = len(context.tokens), not sequence.awaits_vote
            if (groups and size > room) or free < needs_row:
                break
            room, free = room - size, free - needs_row
            groups.setdefault(id(sequence.view), []).append(ticket)
        taken = set(chain(*groups.values()))
        self._new, self._continued = (
            deque(t for t in queue if t in self._sequences and t not in taken)
            for queue in (self._new, self._continued)
        )
        return list(groups.values())

    def _prefill(self, tickets: list[int], events: TicketEvents) -> None:
        """Prefills contexts of one view. Where that fails, each is tried alone: an error belongs to
        the requests whose own prefill fails."""
        sequences = [self._sequences[ticket] for ticket in tickets]
        view = sequences[0].view
        try:
            prefill = prefill_encoded(self._model, view, [s.context() for s in sequences])
            chosen = selections(prefill.selected, view)
            if view.words is not None:
                asked = [s.request.question if s.awaits_vote else None for s in sequences]
                chosen = with_words(chosen, prefill.selected, view, asked)
            stays = [row for row, each in enumerate(sequences) if not each.awaits_vote]
            self._runner.admit(prefill, stays)
        except Exception as error:
            # A rank that is late would keep each of them waiting.
            each_alone = len(tickets) > 1 and not isinstance(error, RankError)
            for ticket in tickets:
                if each_alone:
                    self._prefill([ticket], events)
                else:
                    self._fail(ticket, error, events)
            return
        self._rows += [tickets[row] for row in stays]
        for ticket, sequence, its in zip(tickets, sequences, chosen, strict=True):
            found = self._guarded(ticket, events, sequence.prefilled, its)
            if found is not None:
                events += [(ticket, event) for event in found]
                if not sequence.decoding:
                    self._continued.append(ticket)

    def _choose_tokens(self, events: TicketEvents) -> None:
        """Every sequence's next token; those that end, or need another prefill, leave their row."""
        draws = [self._sequences[ticket].draw() for ticket in self._rows]
        chosen = self._runner.choose(draws, self._tokenizer.vocab_size)
        for row in reversed(range(len(self._rows))):  # the last one moves to a row that is left
            ticket = self._rows[row]
            sequence = self._sequences[ticket]
            given = chosen[row], self._runner.room(row)
            found = self._guarded(ticket, events, sequence.append, *given)
            if found is None:
                continue  # failed, and gone
            events += [(ticket, event) for event in found]
            if not sequence.decoding:
                self._leave(row)
                if sequence.finished:
                    del self._sequences[ticket]
                else:
                    self._continued.append(ticket)

    def _leave(self, row: int) -> None:
        self._runner.remove(row)
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def _guarded(
        self, ticket: int, events: TicketEvents, call: Callable[..., T], *given: object
    ) -> T | None:
        """call(*given); an error fails the request, which is gone then (None)."""
        try:
            return call(*given)
        except Exception as error:
            self._fail(ticket, error, events)
            return None

    def _fail(self, ticket: int, error: Exception, events: TicketEvents) -> None:
        self.cancel(ticket)
        events.append((ticket, Failed(error)))
