"""Read shards in the one global order, and resume exactly.

Rank r of W takes every W-th sample of it, so any number of ranks reads the same samples in the same
steps, and the whole state is how many samples all ranks together have consumed, and how many each
stage of the shards had: a stage that has grown since reads what came later after what it had.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from data_pipeline.errors import DataError
from data_pipeline.schema import Sample
from data_pipeline.shards.order import BuiltReads, GlobalOrder, MixtureReads, StageReads
from data_pipeline.shards.reader import ShardReader

T = TypeVar("T")
LoaderState = dict[str, Any]


class ShardLoader(Generic[T]):
    """Iterates over this rank's samples, all stages in sequence.

    reads: what each stage of the run reads (None: each what was built for it).
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
        reads: Sequence[StageReads] | None = None,
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
        self._seed = seed
        self._reads = reads or [BuiltReads(i) for i in range(len(reader.manifest.stages))]
        self._follow([[stage.samples] for stage in reader.manifest.stages])
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

    def state_dict(self) -> LoaderState:
        """Samples consumed by all ranks together since the beginning, and those of each stage."""
        return {"consumed": self._consumed, "parts": self._parts}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue after the samples consumed, with this loader's own rank and world size.

        Stages may have more samples than then, or more may have come; a state without `parts` is of
        the stages as they are. Raises DataError where a stage has fewer.
        """
        consumed = state.get("consumed")
        if not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"the loader's state is {state}: give {{'consumed': 0 or more}}")
        self._stop()
        self._follow(self._grown(state.get("parts", self._parts), consumed))
        self._consumed = consumed

    def _follow(self, parts: Sequence[Sequence[int]]) -> None:
        self._parts = parts
        epochs = [stage.epochs for stage in self.reader.manifest.stages]
        self._order = GlobalOrder(parts, epochs, self._seed, self._reads)

    def _grown(self, parts: Sequence[Sequence[int]], consumed: int) -> list[list[int]]:
        """The parts of each stage as it is; of one that nothing was read of, that is one part."""
        found, begin = [], 0
        for reads in self._reads:
            if isinstance(reads, MixtureReads):
                begin += reads.samples
                continue
            place, stage = reads.stage, self.reader.manifest.stages[reads.stage]
            had = list(parts[place]) if place < len(parts) and begin < consumed else []
            if (more := stage.samples - sum(had)) < 0:
                raise DataError(
                    f"stage {place} of {self.reader.directory} has {stage.samples} samples, "
                    f"and had {sum(had)}: build them as they were"
                )
            found.append([*had, *[more] * bool(more)])
            count = stage.samples * stage.epochs
            begin += count if reads.limit is None else min(count, reads.limit)
        return found

    def close(self) -> None:
        self._stop()
        self.reader.close()

    def _read(self, consumed: int) -> Iterator[T | Sample]:
        places = range(consumed + self._rank, len(self._order), self._world_size)
        numbers = (self._order[place] for place in places)
        for sample in self._ahead(numbers) if self.reader.ahead else map(self._sample, numbers):
            yield sample if self._transform is None else self._transform(sample)

    def _sample(self, number: int) -> Sample:
        return self.reader[number]

    def _ahead(self, numbers: Iterator[int]) -> Iterator[Sample]:
        """In their order; a few are on their way at once, and no more are held."""
        pool, coming = ThreadPoolExecutor(self.reader.ahead), deque()
        try:
            for number in numbers:
                coming.append(pool.submit(self._sample, number))
                if len(coming) > self.reader.ahead:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

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
