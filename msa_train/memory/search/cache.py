"""Hot documents of a CPU: pooled states that were read lately, or will be soon, in its memory.

What one router layer selects, the layers above it will probably select too. So a read also orders
the same documents of those layers, which a thread fetches while the layers between compute.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor

from msa_train.model.attention import Pooled

_Key = tuple[str, int, int]  # a segment's identity, a layer, a row


class StoredDocuments(Protocol):
    """Documents whose states lie on disk or in host memory. identity: the same for the same ones.

    layers: ascending.
    """

    identity: str
    layers: Sequence[int]

    def copies(self, layer: int, rows: list[int]) -> list[Pooled]:
        """A copy of each document's states."""


class HotDocuments:
    """Documents' states in memory, within `budget` bytes; the longest unused go first.

    prefetch: fetch what is read in one layer for the layers above. hits, misses: of documents that
    were read (not of those fetched ahead). Thread-safe.
    """

    def __init__(self, budget: int, prefetch: bool = True):
        self._budget = budget
        self._held: OrderedDict[_Key, Pooled] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = self.hits = self.misses = 0
        # Where nothing is kept, nothing is fetched ahead.
        ahead = prefetch and budget > 0
        self.ahead = ThreadPoolExecutor(1, "prefetch") if ahead else None
        self._waiting: WeakKeyDictionary[StoredDocuments, Future] = WeakKeyDictionary()

    def read(self, stored: StoredDocuments, layer: int, rows: Tensor) -> Pooled:
        """States of all chunks of some documents, in their order."""
        found = self._get(stored, layer, rows.tolist())
        if self.ahead is not None:
            self._order(stored, [each for each in stored.layers if each > layer], rows.tolist())
        return Pooled.joined(found)

    def close(self) -> None:
        """Fetches nothing ahead any more."""
        if self.ahead is not None:
            self.ahead.shutdown(wait=True, cancel_futures=True)

    def _get(
        self, stored: StoredDocuments, layer: int, rows: list[int], ahead: bool = False
    ) -> list[Pooled]:
        keys = [(stored.identity, layer, row) for row in rows]
        with self._lock:
            found = {key: self._held[key] for key in keys if key in self._held}
            for key in found:
                self._held.move_to_end(key)
            if not ahead:
                self.hits += len(found)
                self.misses += len(keys) - len(found)
        missing = [key for key in keys if key not in found]
        if missing:
            read = stored.copies(layer, [row for _, _, row in missing])
            found.update(zip(missing, read, strict=True))
            self._keep({key: found[key] for key in missing})
        return [found[key] for key in keys]

    def _keep(self, fresh: dict[_Key, Pooled]) -> None:
        with self._lock:
            for key, states in fresh.items():
                if key not in self._held:
                    self._held[key] = states
                    self.bytes += _bytes(states)
            while self.bytes > self._budget:
                _, oldest = self._held.popitem(last=False)
                self.bytes -= _bytes(oldest)

    def _order(self, stored: StoredDocuments, layers: list[int], rows: list[int]) -> None:
        """Replaces an order that has not begun: its layers are being read already."""
        names = [(stored.identity, layer, row) for layer in layers for row in rows]
        if all(name in self._held for name in names):
            return  # waking the thread would cost more than it could save
        if stored in self._waiting:
            self._waiting[stored].cancel()
        with contextlib.suppress(RuntimeError):  # closed: nothing is fetched ahead any more
            self._waiting[stored] = self.ahead.submit(self._fetch, stored, layers, rows)

    def _fetch(self, stored: StoredDocuments, layers: list[int], rows: list[int]) -> None:
        """In the thread."""
        for layer in layers:
            self._get(stored, layer, rows, ahead=True)


def _bytes(states: Pooled) -> int:
    return states.k.nbytes + states.v.nbytes + states.key.nbytes
