"""How ranks agree beside the training: over the store they met at, without any collective.

A second thread must not use a group that the steps use, for the ranks' calls would come in other
orders; and a collective that times out does not say who is missing.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from msa_train.errors import RankError
from msa_train.parallel import groups

T = TypeVar("T")


class Meeting:
    """One thing after another that all ranks agree on, each asking the same in the same order.

    name: new, and the same on all ranks. what: what is missing of a rank that does not come. Raises
    RankError naming those that have not come within timeout_s of rank 0, on every rank.
    """

    def __init__(self, name: str, what: str, timeout_s: float):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._what, self._timeout_s, self._asked = what, timeout_s, 0
        self._store = groups.own_store(name) if self.size > 1 else None

    def all(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        place = self._next()
        keys = [f"{place}/{rank}" for rank in range(self.size)]
        if self.rank > 0:
            self._store.set(keys[self.rank], pickle.dumps(value))
        return self._told(place, lambda: [value, *self._collected(keys[1:])])

    def of_rank_0(self, look: Callable[[], T]) -> T:
        """What rank 0 sees or does; an error of a user's is raised on all ranks."""
        return look() if self.size == 1 else self._told(self._next(), look)

    def _next(self) -> str:
        self._asked += 1
        return str(self._asked)

    def _told(self, place: str, look: Callable[[], T]) -> T:
        """Of rank 0, to all of them; the last one that reads it clears it away."""
        if self.rank == 0:
            self._store.set(place, pickle.dumps(groups.outcome(look)))
        found = pickle.loads(self._read([place], [0], 2 * self._timeout_s)[0])
        with contextlib.suppress(dist.DistError):  # rank 0 has ended: nothing is to be cleared away
            if self._store.add(f"{place}/read", 1) == self.size:
                self._delete([place, f"{place}/read"])
        return groups.told(found)

    def _collected(self, keys: Sequence[str]) -> list[Any]:
        found = self._read(keys, range(1, self.size), self._timeout_s)
        self._delete(keys)
        return [pickle.loads(each) for each in found]

    def _read(self, keys: Sequence[str], ranks: Sequence[int], limit_s: float) -> list[bytes]:
        """keys: one of each of these ranks."""
        try:
            self._store.wait(list(keys), timedelta(seconds=limit_s))
            return [self._store.get(key) for key in keys]
        except dist.DistError as error:
            late = [rank for key, rank in zip(keys, ranks, strict=True) if not self._has(key)]
            who = ", ".join(map(str, late or [0]))
            raise RankError(
                f"{self._what}: nothing came of rank{'s' * (len(late) > 1)} {who} within "
                f"{limit_s:.0f} s (training.timeout_s): {str(error).splitlines()[0]}"
            ) from error

    def _has(self, key: str) -> bool:
        try:
            return self._store.check([key])
        except dist.DistError:  # rank 0, which keeps the store, is gone
            return True

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with contextlib.suppress(dist.DistError):
                self._store.delete_key(key)
