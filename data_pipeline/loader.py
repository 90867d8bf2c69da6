"""Read shards in an order that depends on seed and epoch alone, and resume exactly.

Stages come in sequence; inside a stage the samples are permuted. Rank r of W takes every W-th
sample of the one global order, so any number of ranks reads the same samples in the same steps,
and the whole state is one integer: how many samples all ranks together have consumed.
"""

from __future__ import annotations

import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import TOKENIZER_FOLDER, Manifest, load_index, shard_name
from data_pipeline.schema import Sample
from data_pipeline.tokenizer import Tokenizer

T = TypeVar("T")


class ShardReader:
    """Random access to the samples of a shard set, each checked by its CRC-32."""

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.index = load_index(directory, self.manifest)
        self._files: dict[int, int] = {}  # shard -> file descriptor

    def __len__(self) -> int:
        return len(self.index)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus. Raises DataError when it is not the one it was built by."""
        tokenizer = Tokenizer.load(self.directory / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            raise DataError(
                f"{self.directory / TOKENIZER_FOLDER} is not the tokenizer that these shards "
                "were built with: build the shards again"
            )
        return tokenizer

    def __getitem__(self, sample: int) -> Sample:
        """Raises DataError naming shard and sample when the file is missing, short or damaged."""
        row = self.index[sample]
        where = f"sample {sample} of {self.directory / shard_name(int(row['shard']))}"
        file = self._open(int(row["shard"]), where)
        data = os.pread(file, int(row["size"]), int(row["offset"]))
        if len(data) < int(row["size"]):
            raise DataError(f"{where} is cut short: the shard is truncated; copy or build it again")
        if zlib.crc32(data) != int(row["crc32"]):
            raise DataError(f"{where} is damaged (CRC-32 differs): copy or build the shard again")
        return Sample.from_bytes(data)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _open(self, shard: int, where: str) -> int:
        if shard not in self._files:
            try:
                path = self.directory / shard_name(shard)
                self._files[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise DataError(
                    f"{where} cannot be read ({error.strerror}): copy or build the shard again"
                ) from error
        return self._files[shard]


class GlobalOrder:
    """The order in which all ranks together read: place in it -> sample. Epochs follow on."""

    def __init__(self, stages: np.ndarray, seed: int):
        """stages: [samples] stage of each sample, ascending."""
        self._bounds = np.searchsorted(stages, np.arange(int(stages[-1]) + 2)).tolist()
        self._length = len(stages)
        self._seed = seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        epoch, place = divmod(place, self._length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permuted(epoch)
        return int(self._order[place])

    def _permuted(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch))
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return np.concatenate([low + rng.permutation(high - low) for low, high in bounds])


class ShardLoader(Generic[T]):
    """An endless iterator over this rank's samples; epochs follow one another.

    transform: applied to each sample in the prefetch thread (tokenising, collating).
    prefetch: samples made ready ahead.

    All data-parallel ranks must take equally many samples (tensor-parallel ranks of one
    data-parallel rank pass the same `rank`). Saving between steps, every rank's state is equal,
    and may be loaded with another number of ranks.
    """

    def __init__(
        self,
        directory: Path | str,
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
        self.reader = ShardReader(directory)
        self._order = GlobalOrder(self.reader.index["stage"], seed)
        self._rank, self._world_size = rank, world_size
        self._transform, self._prefetch = transform, prefetch
        self._consumed = 0
        self._thread: _Prefetch | None = None

    def __len__(self) -> int:
        """Samples of an epoch, over all ranks."""
        return len(self.reader)

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
        while True:
            sample = self.reader[self._order[place]]
            yield sample if self._transform is None else self._transform(sample)
            place += self._world_size

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


class _Prefetch:
    """Runs an endless iterator in a thread, a few items ahead; its exception comes out of get."""

    def __init__(self, items: Iterator[Any], ahead: int):
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()
        self._error: BaseException | None = None

    def get(self) -> Any:
        if self._error is None:
            item, self._error = self._queue.get()
        if self._error is not None:  # it stays broken: the next call must not wait for ever
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
        except BaseException as error:
            self._queue.put((None, error))
