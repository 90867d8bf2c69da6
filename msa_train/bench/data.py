"""What a process that reads samples makes of them a second, beside the least that reading takes.

The floor is the tar itself, read from its start, and its JSON parsed: what any reader of such
shards does. Time is that of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import math
import statistics
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline.schema import Piece, Sample
from data_pipeline.shards.manifest import shard_name
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.remote import is_url
from data_pipeline.shards.sampling import SampleBuilder
from data_pipeline.tokenizer import TokenizedPieces, Tokenizer
from msa_train.config import Config
from msa_train.errors import ConfigError
from msa_train.training.data import Collate, checked_tokenizer, open_shards

_TURNS = 5
_TAR_BYTES = 512 + 256  # a header, and half a block that is filled up


@dataclass(frozen=True)
class ReadingSpeed:
    """Of one process. ms: of a sample, by part; their sum is `total_ms`. floor_ms: as above."""

    samples: int
    bytes: int
    ms: dict[str, float]
    floor_ms: float

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values())

    def row(self, name: str, ms: float) -> dict[str, Any]:
        mb = self.bytes / self.samples / 1e6
        return {
            "what": name,
            "ms_per_sample": ms,
            "samples_per_s": 1e3 / ms,
            "mb_per_s": mb * 1e3 / ms,
            "of_floor": ms / self.floor_ms,
        }


def measure(
    config: Config,
    samples: int,
    gpus: int = 64,
    step_s: float | None = None,
    tokens: float | None = None,
) -> dict[str, Any]:
    """Rows of the floor, of each part, and of the whole; with step_s, of the processes that `gpus`
    GPUs need at that time of a step; with tokens, of a build of so many memory tokens."""
    if is_url(config.shards):
        raise ConfigError(f"training.shards is {config.shards}: measure shards in a folder")
    reader = open_shards(config)
    tokenizer = checked_tokenizer(config, reader)
    speed = reading_speed(config, reader, tokenizer, samples)
    rows = [speed.row("floor: tar and JSON", speed.floor_ms)]
    rows += [speed.row(name, ms) for name, ms in speed.ms.items()]
    rows.append(speed.row("all of them", speed.total_ms))
    found: dict[str, Any] = {"samples": speed.samples, "bytes": speed.bytes, "rows": rows}
    if step_s is not None:
        found["needs"] = needs(config, speed.total_ms, gpus, step_s)
    if tokens is not None:
        found["build"] = building(config, reader, tokenizer, speed, tokens)
    return found


def building(
    config: Config, reader: ShardReader, tokenizer: Tokenizer, speed: ReadingSpeed, tokens: float
) -> dict[str, Any]:
    """What building the first stage's samples until they have `tokens` would take: an estimate
    from samples that are built once more, without what sources prepare once."""
    builder = SampleBuilder(
        config.corpus, tokenizer, reader.directory.resolve().parent / "prepared"
    )
    each = range(speed.samples)
    _, seconds = _spent(lambda: [builder.build(number).to_bytes() for number in each])
    samples = math.ceil(tokens / reader.manifest.stages[0].document_tokens)
    shard_samples = config.data.shard_samples
    shard_bytes = (speed.bytes / speed.samples + _TAR_BYTES) * shard_samples
    shards = math.ceil(samples / shard_samples)
    return {
        "tokens": tokens,
        "samples": samples,
        "shards": shards,
        "bytes": round(shard_bytes * samples / shard_samples),
        "ms_per_sample": seconds * 1e3 / speed.samples,
        "cpu_hours": seconds / speed.samples * samples / 3600,
    }


def needs(config: Config, ms: float, gpus: int, step_s: float) -> dict[str, Any]:
    """How many processes must read for `gpus` GPUs, a sample taking `ms`, and how many there are.

    All ranks of a document-parallel group tokenise its whole sample, those of a tensor-parallel one
    too. A rank reads in one thread.
    """
    shared = config.training.document_parallel * config.training.tensor_parallel
    work_s = config.training.batch_samples * shared * ms / 1e3
    return {
        "gpus": gpus,
        "step_s": step_s,
        "samples_per_s": config.training.batch_samples / step_s,
        "processes": math.ceil(work_s / step_s),
        "share_of_a_rank": work_s / step_s / gpus,
    }


def reading_speed(
    config: Config, reader: ShardReader, tokenizer: Tokenizer, samples: int
) -> ReadingSpeed:
    """Of the samples of the first shard of the run, `samples` at most; the median of turns."""
    count = min(samples, int((reader.index["shard"] == 0).sum()))
    timed = _Timed(tokenizer)
    collate = Collate(timed, config.model.router)
    turns = [_turn(reader, collate, timed, count) for _ in range(_TURNS)]
    floors = [_spent(lambda: _floor(reader, count))[1] for _ in range(_TURNS)]
    ms = {name: statistics.median(turn[name] for turn in turns) * 1e3 / count for name in turns[0]}
    size = int(reader.index["size"][:count].sum())
    return ReadingSpeed(count, size, ms, statistics.median(floors) * 1e3 / count)


def _turn(reader: ShardReader, collate: Collate, timed: _Timed, count: int) -> dict[str, float]:
    """Seconds of each part, for `count` samples."""
    spent = dict.fromkeys(("read and CRC-32", "decode", "tokenise", "collate"), 0.0)
    for number in range(count):
        data, seconds = _spent(lambda number=number: reader.read_bytes(number))
        spent["read and CRC-32"] += seconds
        sample, seconds = _spent(lambda data=data: Sample.from_bytes(data))
        spent["decode"] += seconds
        timed.seconds = 0.0
        _, seconds = _spent(lambda sample=sample: collate([sample]))
        spent["tokenise"] += timed.seconds
        spent["collate"] += seconds - timed.seconds
    return spent


def _floor(reader: ShardReader, count: int) -> None:
    with tarfile.open(reader.directory / shard_name(0)) as tar:
        for _, member in zip(range(count), tar, strict=False):
            file = tar.extractfile(member)
            assert file is not None  # a shard holds files alone
            json.loads(file.read())


def _spent(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


class _Timed:
    """A tokenizer that counts the seconds of its calls."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self.seconds = tokenizer, 0.0

    def encode_pieces(self, pieces: list[Piece]) -> TokenizedPieces:
        found, seconds = _spent(lambda: self._tokenizer.encode_pieces(pieces))
        self.seconds += seconds
        return found
