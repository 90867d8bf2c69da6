"""Continuous batching: requests at different rounds, of different memories, side by side.

Every step prefills what waits (new requests, and those whose next round is a full prefill, SPEC
section 4) as far as there is room, together where they ask the same view, so that routing them is
one search; then every context in a slot writes one more token. A request that ends gives its slot
to the next one at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, count
from typing import TypeVar

import torch

from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import RankError
from msa_train.memory.engine.events import Chosen, Event, Failed, chosen_documents
from msa_train.memory.engine.interleave import InterleaveLimits
from msa_train.memory.engine.model_runner import ModelRunner, prefill_encoded
from msa_train.memory.engine.sampling import Sampling
from msa_train.memory.engine.sequence import Request, Sequence
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import Prefill

__all__ = ["InterleaveLimits", "Request", "Sampling", "Scheduler", "chosen_of"]

SLOTS = 64
SLOT_TOKENS = 4096
PREFILL_TOKENS = 8192

_T = TypeVar("_T")
Report = list[tuple[int, Event]]  # (ticket, what happened)


def chosen_of(prefill: Prefill, view: MemoryView) -> list[Chosen]:
    """What each context of a prefill selected."""
    return chosen_documents(prefill.readings, view)


class Scheduler:
    """Serves requests in slots; has no thread of its own: who holds it calls `step` while `busy`.

    slots: contexts that decode at once. slot_tokens: of one context. prefill_tokens: prefilled in
    one step, so that those who decode do not wait for long (one context at least). together: all
    requests come at once and nobody waits for the first word (an evaluation): prefill only when at
    least as many can be prefilled as decode, for fewer searches; memory is taken as it is needed.

    What else runs beside a request has no influence on it. An error in a prefill, or in reading a
    document, fails the requests concerned (event Failed); an error of a decode step is raised.
    """

    def __init__(
        self,
        model: MSADecoder,
        tokenizer: Tokenizer,
        slots: int = SLOTS,
        slot_tokens: int = SLOT_TOKENS,
        prefill_tokens: int = PREFILL_TOKENS,
        together: bool = False,
    ):
        self._model, self._tokenizer = model.eval(), tokenizer
        self._slot_tokens, self._prefill_tokens = slot_tokens, prefill_tokens
        self._together = together
        self._contexts = ModelRunner(model, slots, slot_tokens, preallocate=not together)
        self._tickets = count()
        self._fresh: deque[int] = deque()
        self._continued: deque[int] = deque()  # waiting for another round: before the fresh ones
        self._asked: dict[int, Sequence] = {}
        self._active: list[int] = []  # the ticket of each row

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    @property
    def waiting(self) -> int:
        """Requests that wait for a prefill."""
        return len(self._fresh) + len(self._continued)

    @property
    def decoding(self) -> int:
        return len(self._active)

    def submit(self, request: Request) -> int:
        """Takes a request in; its events carry the ticket."""
        ticket = next(self._tickets)
        self._asked[ticket] = Sequence(request, self._tokenizer, self._slot_tokens)
        self._fresh.append(ticket)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Ends a request without an event; nothing for one that has ended."""
        if self._asked.pop(ticket, None) is None:
            return
        if ticket in self._active:
            self._leave(self._active.index(ticket))
        for queue in (self._fresh, self._continued):
            if ticket in queue:
                queue.remove(ticket)

    def step(self) -> Report:
        """One round of prefills, then one token of every context; what happened, in order."""
        report: Report = []
        for tickets in self._next_prefills(report):
            self._prefill(tickets, report)
        if self._active:
            self._write(report)
            self._feed()
        return report

    def _next_prefills(self, report: Report) -> list[list[int]]:
        """Takes from the queues what fits, in order, grouped by view."""
        free, room = self._contexts.free, self._prefill_tokens
        if not self.waiting:
            return []
        if self._together and min(free, self.waiting) < len(self._active):
            return []
        groups: dict[int, list[int]] = {}
        for ticket in [*self._continued, *self._fresh]:
            asked = self._asked[ticket]
            size = self._guarded(ticket, report, lambda asked=asked: len(asked.context().tokens))
            if size is None:
                continue
            if (groups and size > room) or free < (not asked.awaits_vote):
                break
            room, free = room - size, free - (not asked.awaits_vote)
            groups.setdefault(id(asked.view), []).append(ticket)
        taken = set(chain(*groups.values()))
        self._fresh, self._continued = (
            deque(ticket for ticket in queue if ticket in self._asked and ticket not in taken)
            for queue in (self._fresh, self._continued)
        )
        return list(groups.values())

    def _prefill(self, tickets: list[int], report: Report) -> None:
        """Prefills contexts of one view; an error is theirs alone whose prefill alone fails."""
        asked = [self._asked[ticket] for ticket in tickets]
        view = asked[0].view
        try:
            prefill = prefill_encoded(self._model, view, [each.context() for each in asked])
            chosen = chosen_of(prefill, view)
            stays = [row for row, each in enumerate(asked) if not each.awaits_vote]
            self._contexts.admit(prefill, stays)
        except Exception as error:
            # A rank that is late would keep each of them waiting.
            each_alone = len(tickets) > 1 and not isinstance(error, RankError)
            for ticket in tickets:
                if each_alone:
                    self._prefill([ticket], report)
                else:
                    self._fail(ticket, error, report)
            return
        self._active += [tickets[row] for row in stays]
        for row, ticket in enumerate(tickets):
            routed = lambda row=row: asked[row].routed(chosen[row])  # noqa: E731
            if (events := self._guarded(ticket, report, routed)) is not None:
                report += [(ticket, event) for event in events]
                if not asked[row].writing:
                    self._continued.append(ticket)

    def _write(self, report: Report) -> None:
        """Every context's next token; those that end, or need another prefill, leave their row."""
        logits = self._contexts.logits(self._tokenizer.vocab_size)
        likeliest = logits.argmax(1).tolist()
        for row in reversed(range(len(self._active))):  # the last context moves to a row left
            ticket = self._active[row]
            asked = self._asked[ticket]
            write = self._writer(asked, likeliest[row], logits[row], self._contexts.room(row))
            events = self._guarded(ticket, report, write)
            if events is None:
                continue  # failed, and gone
            report += [(ticket, event) for event in events]
            if not asked.writing:
                self._leave(row)
                if asked.finished:
                    del self._asked[ticket]
                else:
                    self._continued.append(ticket)

    @staticmethod
    def _writer(
        asked: Sequence, likeliest: int, logits: torch.Tensor, room: int
    ) -> Callable[[], list[Event]]:
        return lambda: asked.write(asked.choose(likeliest, logits), room)

    def _feed(self) -> None:
        if self._active:
            self._contexts.feed([self._asked[ticket].fed for ticket in self._active])

    def _leave(self, row: int) -> None:
        self._contexts.remove(row)
        self._active[row] = self._active[-1]
        self._active.pop()

    def _guarded(self, ticket: int, report: Report, does: Callable[[], _T]) -> _T | None:
        """What `does` returns; an error fails the request, and it is gone (None)."""
        try:
            return does()
        except Exception as error:
            self._fail(ticket, error, report)
            return None

    def _fail(self, ticket: int, error: Exception, report: Report) -> None:
        self.cancel(ticket)
        report.append((ticket, Failed(error)))
