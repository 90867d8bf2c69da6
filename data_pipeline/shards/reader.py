"""Random access to the samples of a shard set, in a folder or behind a URL."""

from __future__ import annotations

import sys
import threading
import zlib
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.schema import Sample
from data_pipeline.shards.manifest import TOKENIZER_FOLDER, ShardManifest, load_index, shard_name
from data_pipeline.shards.remote import LocalFiles, RemoteFiles, is_url
from data_pipeline.tokenizer import Tokenizer, load_tokenizer


class ShardReader:
    """Samples by number, each checked by its CRC-32.

    location: a folder, or a URL (http://, s3://, ... what fsspec knows), whose files are kept in
    `cache` as they are read, up to cache_gb.
    skip_damaged: a sample that cannot be read is reported, once, and another of its stage is read
    in its place, which `skipped` counts; otherwise it is an error. The size of every shard is
    checked at once, so that a missing, empty or truncated one is known before training begins.
    """

    def __init__(
        self,
        location: Path | str,
        *,
        skip_damaged: bool = False,
        cache: Path | None = None,
        cache_gb: float = 10.0,
    ):
        if is_url(location):
            assert cache is not None, "a URL needs a cache"
            self._files = RemoteFiles(str(location), cache, cache_gb)
        else:
            self._files = LocalFiles(Path(location))
        self.directory = self._files.folder
        self.manifest = ShardManifest.load(self.directory)
        self.index = load_index(self.directory, self.manifest)
        self._skips = skip_damaged
        self._lock = threading.Lock()
        self.skipped = 0
        self._told: set[int] = set()
        self._missing: set[int] = set()
        self._check_shards()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ahead(self) -> int:
        """How many samples are worth reading at once, before they are needed. Threads may."""
        return self._files.ahead

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus. Raises DataError when it is not the one it was built by."""
        tokenizer = load_tokenizer(self.directory / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            raise DataError(
                f"{self.directory / TOKENIZER_FOLDER} is not the tokenizer that these shards "
                "were built with: build the shards again"
            )
        return tokenizer

    def __getitem__(self, sample: int) -> Sample:
        """Raises DataError naming shard and sample when the file is missing, short or damaged."""
        try:
            return self._read(sample)
        except DataError as error:
            if not self._skips:
                raise
            with self._lock:
                self._tell(sample, error)
                found = self._other(sample)
                if found is None:
                    raise
                self.skipped += 1
            return found

    def _other(self, sample: int) -> Sample | None:
        """A readable sample of the same stage, drawn by the number of the one it stands in for.

        So what stands in for a whole shard is spread over the stage, and is the same on any rank.
        """
        stage = self.index["stage"][sample]
        first, last = (int(self.index["stage"].searchsorted(stage + i)) for i in (0, 1))
        for place in np.random.default_rng(sample).permutation(last - first):
            try:
                return self._read(first + int(place))
            except DataError as error:
                self._tell(first + int(place), error)
        return None

    def _tell(self, sample: int, error: DataError) -> None:
        """Once for each sample; those of shards that are missing were announced together."""
        if sample not in self._told and int(self.index["shard"][sample]) not in self._missing:
            self._told.add(sample)
            print(f"skipped: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._files.close()

    def _read(self, sample: int) -> Sample:
        return Sample.from_bytes(self.read_bytes(sample))

    def read_bytes(self, sample: int) -> bytes:
        """A sample as it stands in its shard, checked. Raises DataError, whatever is skipped."""
        row = self.index[sample]
        name, size = shard_name(int(row["shard"])), int(row["size"])
        where = f"sample {sample} of {self._files.place}/{name}"
        try:
            data = self._files.read(name, int(row["offset"]), size)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(
                f"{where} cannot be read ({reason}): copy or build the shard again"
            ) from error
        if zlib.crc32(data) != int(row["crc32"]):
            data = self._again(name, row, data)
        if len(data) < size:
            raise DataError(f"{where} is cut short: the shard is truncated; copy or build it again")
        if zlib.crc32(data) != int(row["crc32"]):
            raise DataError(f"{where} is damaged (CRC-32 differs): copy or build the shard again")
        return data

    def _again(self, name: str, row: np.void, data: bytes) -> bytes:
        """A damaged sample from where its shard was copied from, where that can be asked."""
        try:
            return self._files.again(name, int(row["offset"]), int(row["size"])) or data
        except OSError:
            return data

    def _check_shards(self) -> None:
        """Sizes of all shards against the manifest."""
        wrong = []
        names = list(map(shard_name, range(len(self.manifest.shards))))
        sizes = self._files.sizes(names)
        for shard, (name, size) in enumerate(zip(names, self.manifest.shards, strict=True)):
            found = sizes[shard]
            if found is None:
                wrong.append(f"{name} is missing")
                self._missing.add(shard)
            elif found != size:
                wrong.append(
                    f"{name} is empty" if not found else f"{name} has {found} bytes, not {size}"
                )
        if wrong:
            what = f"{self._files.place}: {'; '.join(wrong[:5])}" + (
                f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            )
            if not self._skips:
                raise DataError(
                    f"{what}: copy or build the shards again, or set training.damaged_samples skip"
                )
            print(f"{what}: their samples will be skipped", file=sys.stderr, flush=True)
