"""Read shards in an order that depends on seed and epoch alone, and resume exactly.

Stages come in sequence; inside a stage the samples are permuted. Rank r of W takes every W-th
sample of the one global order, so any number of ranks reads the same samples in the same steps,
and the whole state is one integer: how many samples all ranks together have consumed.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Sample
from data_pipeline.shards.reader import ShardReader

T = TypeVar("T")


class GlobalOrder:
    """The order in which all ranks together read: place in it -> sample.

    samples, epochs: of each stage, which is read `epochs` times, each time in another order.
    """

    def __init__(self, samples: Sequence[int], epochs: Sequence[int], seed: int):
        self._samples, self._seed = tuple(samples), seed
        self._firsts = (0, *accumulate(samples))
        reads = (count * times for count, times in zip(samples, epochs, strict=True))
        self._ends = tuple(accumulate(reads))
        self._now, self._order = (-1, -1), np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, place: int) -> int:
        stage = bisect_right(self._ends, place)
        if stage == len(self._ends):
            raise IndexError(place)
        begin = self._ends[stage - 1] if stage else 0
        epoch, at = divmod(place - begin, self._samples[stage])
        if (stage, epoch) != self._now:
            rng = np.random.default_rng((self._seed, stage, epoch))
            self._now = stage, epoch
            self._order = self._firsts[stage] + rng.permutation(self._samples[stage])
        return int(self._order[at])


class ShardLoader(Generic[T]):
    """Iterates over this rank's samples, all stages in sequence.

    transform: applied to each sample in the prefetch thread (tokenising, collating).
    prefetch: samples made ready ahead.

    All data-parallel ranks must take equally many samples (tensor-parallel ranks of one
    data-parallel rank pass the same `rank`). Saving between steps, every rank's state is equal,
    and may be loaded with another number of ranks.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        transform: Callable[[Sample], T] | None = None,
        prefetch: int = 4,
    ):
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of world_size {world_size}: give 0 to world_size - 1")
        if prefetch < 1:
            raise DataError(f"prefetch is {prefetch}: give 1 or more")
        self.reader = reader
        stages = reader.manifest.stages
        samples, epochs = [s.samples for s in stages], [s.epochs for s in stages]
        self._order = GlobalOrder(samples, epochs, seed)
        self._rank, self._world_size = rank, world_size
        self._transform, self._prefetch = transform, prefetch
        self._consumed = 0
        self._thread: _Prefetch | None = None

    def __len__(self) -> int:
        """Samples that all ranks together read from beginning to end."""
        return len(self._order)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            self._thread = _Prefetch(self._read(self._consumed), self._prefetch)
        item = self._thread.get()
        self._consumed += self._world_size
        return item

    def state_dict(self) -> dict[str, int]:
        """Samples consumed by all ranks together since the beginning."""
        return {"consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the samples consumed, with this loader's own rank and world size."""
        consumed = state.get("consumed")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"the loader's state is {state}: give {{'consumed': 0 or more}}")
        self._stop()
        self._consumed = consumed

    def close(self) -> None:
        self._stop()
        self.reader.close()

    def _read(self, consumed: int) -> Iterator[T | Sample]:
        place = consumed + self._rank
        while place < len(self._order):
            sample = self.reader[self._order[place]]
            yield sample if self._transform is None else self._transform(sample)
            place += self._world_size

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


class _Prefetch:
    """Runs an iterator in a thread, a few items ahead; its exception, or end, comes out of get."""

    def __init__(self, items: Iterator[Any], ahead: int):
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()
        self._error: BaseException | None = None

    def get(self) -> Any:
        if self._error is None:
            item, self._error = self._queue.get()
        if self._error is not None:  # it stays broken: the next call must not wait forever
            raise self._error
        return item

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)  # make room for a thread that waits to put
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                self._queue.put((item, None))
                if self._stopped.is_set():
                    return
            self._queue.put((None, StopIteration()))
        except BaseException as error:
            self._queue.put((None, error))
