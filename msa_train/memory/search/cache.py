"""Documents whose pooled keys and values were read lately, held on the computing device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from msa_train.model.attention import Pooled

Read = Callable[[Sequence[Hashable]], list[Pooled]]


class HotDocuments:
    """States by key, within `budget` bytes; what was used longest ago goes first. Thread-safe.

    hits, misses: of documents asked for (not of those fetched ahead).
    """

    def __init__(self, budget: int):
        self._budget = budget
        self._held: OrderedDict[Hashable, Pooled] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = self.hits = self.misses = 0

    def get(self, keys: Sequence[Hashable], read: Read, ahead: bool = False) -> list[Pooled]:
        """States in the order of keys; `read` brings those that are not held."""
        with self._lock:
            found = {key: self._held[key] for key in keys if key in self._held}
            for key in found:
                self._held.move_to_end(key)
            if not ahead:
                self.hits += len(found)
                self.misses += len(keys) - len(found)
        missing = [key for key in keys if key not in found]
        if missing:
            found.update(zip(missing, read(missing), strict=True))
            self._keep({key: found[key] for key in missing})
        return [found[key] for key in keys]

    def _keep(self, fresh: dict[Hashable, Pooled]) -> None:
        with self._lock:
            for key, states in fresh.items():
                if key not in self._held:
                    self._held[key] = states
                    self.bytes += _bytes(states)
            while self.bytes > self._budget:
                _, oldest = self._held.popitem(last=False)
                self.bytes -= _bytes(oldest)


def _bytes(states: Pooled) -> int:
    return states.k.nbytes + states.v.nbytes + states.key.nbytes
