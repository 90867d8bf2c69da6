"""Documents' states that a device reads: staged in one copy, the latest kept in tables of rows.

However many documents a layer chose, of however many segments, their states are gathered in one
pinned block of host memory, which goes to the device in one copy that nobody waits for. What the
layers above will probably choose too is fetched ahead by a thread, in a stream of its own.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Protocol

import torch
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.transfer import block_of, views

_Key = tuple[str, int, int]  # a segment's identity, a layer, a row


class HostDocuments(Protocol):
    """Documents whose states lie on disk or in host memory. identity: the same for the same ones.

    layers: ascending.
    """

    identity: str
    layers: Sequence[int]

    def counts(self, rows: Tensor) -> Tensor:
        """[p] chunks of each document."""

    def states(self, layer: int) -> Pooled:
        """Of all chunks."""

    def read_into(self, layer: int, rows: Tensor, out: Pooled) -> None:
        """States of all chunks of some documents. Raises BankError for damaged ones."""


Wanted = Sequence[tuple[HostDocuments, Tensor]]  # documents and their rows, ascending


def gather(states: Pooled, chunks: Tensor, out: Pooled) -> None:
    """Some chunks [p] of states in host memory, into `out`."""
    for source, target in ((states.k, out.k), (states.v, out.v), (states.key, out.key)):
        torch.index_select(source, 0, chunks, out=target)


@dataclass(frozen=True)
class _Document:
    """A wanted document: whose it is, its row, how many chunks it has, and its key."""

    stored: HostDocuments
    row: int
    chunks: int
    key: _Key


class _Table:
    """States of `rows` chunks on a device, of layers whose chunks have the same form.

    held: the rows of each document, the longest unused first; free: rows of nobody.
    """

    def __init__(self, like: Pooled, rows: int, device: torch.device):
        def empty(x: Tensor) -> Tensor:
            return torch.empty(rows, *x.shape[1:], dtype=x.dtype, device=device)

        with torch.inference_mode(False):
            self.states = like.map(empty)
        self.free = list(range(rows))
        self.held: OrderedDict[_Key, list[int]] = OrderedDict()

    def take(self, chunks: int, keep: Collection[_Key]) -> list[int] | None:
        """Rows for so many chunks, those of documents longest unused if need be, but never of those
        to keep; None where there are not enough."""
        lacking, unused = chunks - len(self.free), []
        for key, rows in self.held.items():
            if lacking <= 0:
                break
            if key not in keep:
                unused.append(key)
                lacking -= len(rows)
        if lacking > 0:
            return None
        for key in unused:
            self.free += self.held.pop(key)
        left = len(self.free) - chunks
        taken = self.free[left:]
        del self.free[left:]  # of the end: there may be millions
        return taken

    def read(self, index: Tensor) -> Pooled:
        return self.states.map(lambda x: x[index])

    def write(self, index: Tensor, fresh: Pooled) -> None:
        self.states.k.index_copy_(0, index, fresh.k)
        self.states.v.index_copy_(0, index, fresh.v)
        self.states.key.index_copy_(0, index, fresh.key)


class DeviceDocuments:
    """Documents' states on `device`, within `budget` bytes; the longest unused go first.

    prefetch, hits, misses: as in HotDocuments. Thread-safe.
    """

    def __init__(self, budget: int, device: torch.device | str, prefetch: bool = True):
        self._budget, self._device = budget, torch.device(device)
        self._tables: dict[tuple, _Table] = {}
        self._used: Counter[_Key] = Counter()  # by reads under way: their rows stay
        self._lock = threading.Lock()
        self.hits = self.misses = 0
        ahead = prefetch and budget > 0
        self.ahead = ThreadPoolExecutor(1, "prefetch") if ahead else None
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if ahead and cuda else None
        self._was_read: torch.cuda.Event | None = None
        self._waiting: Future | None = None

    def read(self, layer: int, wanted: Wanted) -> Pooled:
        """States of all chunks of some documents, in their order, on the device."""
        states = self._get(layer, _documents(layer, wanted))
        layers = [each for each in wanted[0][0].layers if each > layer]
        if self.ahead is not None and layers:
            # Replaces an order that has not begun: its layers are being read already.
            if self._waiting is not None:
                self._waiting.cancel()
            with contextlib.suppress(RuntimeError):  # closed: nothing is fetched ahead any more
                self._waiting = self.ahead.submit(self._fetch, layers, wanted)
        return states

    def close(self) -> None:
        """Fetches nothing ahead any more."""
        if self.ahead is not None:
            self.ahead.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, layers: list[int], wanted: Wanted) -> None:
        """In the thread; in a stream of its own, so that nothing waits for it."""
        on_cpu = self._stream is None
        with contextlib.nullcontext() if on_cpu else torch.cuda.stream(self._stream):
            for layer in layers:
                self._get(layer, _documents(layer, wanted), ahead=True)

    def _get(self, layer: int, documents: list[_Document], ahead: bool = False) -> Pooled | None:
        """States, in order; ahead: only what is missing is fetched, and None returned."""
        table, keys = self._table(documents[0].stored, layer), {each.key for each in documents}
        with self._lock:
            missing = [each for each in documents if each.key not in table.held]
            if ahead and not missing:
                return None
            if not ahead:
                self.misses += len(missing)
                self.hits += len(documents) - len(missing)
            for key in keys & table.held.keys():
                table.held.move_to_end(key)
            taken = table.take(sum(each.chunks for each in missing), keys | self._used.keys())
            if taken is not None:
                self._used.update(keys)
        if taken is None:  # they do not all have room: nothing is kept
            return None if ahead else self._staged(layer, documents)[0]
        rows = _divided(taken, missing)
        try:
            states = self._through(table, layer, documents, missing, rows, ahead)
        except BaseException:
            self._settle(table, keys, {}, taken)
            raise
        self._settle(table, keys, rows, [])
        return states

    def _through(
        self,
        table: _Table,
        layer: int,
        documents: list[_Document],
        missing: list[_Document],
        fresh: dict[_Key, list[int]],
        ahead: bool,
    ) -> Pooled | None:
        """Reads what is missing into its rows of the table, and the documents from theirs."""
        into = [row for each in missing for row in fresh[each.key]]
        known = {**{key: table.held.get(key) for key in (x.key for x in documents)}, **fresh}
        rows = [row for each in documents for row in known[each.key]]
        read, (into, rows) = self._staged(layer, missing, [into, rows])
        if missing:
            if ahead and self._was_read is not None:  # what others read before may lie there
                self._stream.wait_event(self._was_read)
            table.write(into, read)
        if ahead:
            if self._stream is not None:  # whoever finds them need not wait
                self._stream.synchronize()
            return None
        states = read if len(missing) == len(documents) else table.read(rows)
        if self._stream is not None:
            self._was_read = torch.cuda.current_stream(self._device).record_event()
        return states

    def _settle(
        self, table: _Table, keys: set[_Key], rows: dict[_Key, list[int]], free: list[int]
    ) -> None:
        """A read is over: rows are those of documents now, or free."""
        with self._lock:
            self._used.subtract(keys)
            self._used += Counter()  # without those of nobody
            for key, own in rows.items():
                if key in table.held:  # another thread was faster
                    table.free += own
                else:
                    table.held[key] = own
            table.free += free

    def _staged(
        self, layer: int, documents: list[_Document], numbers: Sequence[list[int]] = ()
    ) -> tuple[Pooled, list[Tensor]]:
        """States of documents and lists of numbers on the device, in one copy."""
        forms = [(torch.Size([len(each)]), torch.int64) for each in numbers]
        chunks = sum(each.chunks for each in documents)
        stored = documents[0].stored.states(layer) if documents else _NOTHING
        forms += [
            (torch.Size([chunks, *x.shape[1:]]), x.dtype) for x in (stored.k, stored.v, stored.key)
        ]
        block = block_of(forms, pin_memory=self._device.type == "cuda")
        *given, k, v, key = views(block, forms)
        for place, each in zip(given, numbers, strict=True):
            place.copy_(torch.tensor(each, dtype=torch.int64))
        start = 0
        for owner, those in groupby(documents, key=lambda each: each.stored):
            own = list(those)
            end = start + sum(each.chunks for each in own)
            rows = torch.tensor([each.row for each in own])
            owner.read_into(layer, rows, Pooled(k[start:end], v[start:end], key[start:end]))
            start = end
        *given, k, v, key = views(block.to(self._device, non_blocking=True), forms)
        return Pooled(k, v, key), given

    def _table(self, stored: HostDocuments, layer: int) -> _Table:
        """That of layers whose states have the form of this one's; each form has its layers' part
        of the budget."""
        form = _form(stored.states(layer))
        with self._lock:
            if form not in self._tables:
                alike = [_form(stored.states(each)) == form for each in stored.layers]
                like = stored.states(layer)
                size = sum(math.prod(x.shape[1:]) * x.itemsize for x in (like.k, like.v, like.key))
                rows = int(self._budget * sum(alike) / len(alike) / size)
                self._tables[form] = _Table(like, rows, self._device)
            return self._tables[form]


_NOTHING = Pooled(*(torch.empty(0, dtype=torch.uint8) for _ in range(3)))


def _form(states: Pooled) -> tuple:
    return tuple((x.shape[1:], x.dtype) for x in (states.k, states.v, states.key))


def _documents(layer: int, wanted: Wanted) -> list[_Document]:
    return [
        _Document(stored, row, chunks, (stored.identity, layer, row))
        for stored, rows in wanted
        for row, chunks in zip(rows.tolist(), stored.counts(rows).tolist(), strict=True)
    ]


def _divided(rows: list[int], documents: list[_Document]) -> dict[_Key, list[int]]:
    """As many of the rows for each document as it has chunks."""
    ends = list(accumulate((each.chunks for each in documents), initial=0))
    return {
        each.key: rows[start:end]
        for each, (start, end) in zip(documents, pairwise(ends), strict=True)
    }
