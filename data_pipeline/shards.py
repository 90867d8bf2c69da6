"""Build standard WebDataset shards: the same bytes for the same settings and tokenizer.

Shards are built by any number of processes, in a temporary folder that is renamed at the end: a
folder with a manifest is complete.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_pipeline.corpus import train_tokenizer
from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    INDEX_DTYPE,
    INDEX_FILE,
    TOKENIZER_FOLDER,
    Manifest,
    StageCounts,
    make_manifest,
    shard_name,
)
from data_pipeline.mixture import DataConfig
from data_pipeline.protocol import context_pieces, document_pieces
from data_pipeline.samples import SampleBuilder
from data_pipeline.schema import Sample
from data_pipeline.tokenizer import Tokenizer

_TOTALS = ("samples", "documents", "contexts", "measured", "document_tokens", "context_tokens")
_MEASURED_EVERY = 32  # tokenising a sample costs more than building it


def build_shards(
    config: DataConfig,
    out_dir: Path | str,
    workers: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Manifest:
    """Build the shards of a corpus into out_dir, which must not exist yet (or be empty).

    workers: processes (None: config.workers). tokenizer: None trains one on the corpus; either
    way it is saved with the shards.
    Raises DataError when out_dir is in use, or when the settings cannot be met.
    """
    out = Path(out_dir).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: remove it, or give another folder for the shards")
    with _renamed_at_end(out) as folder:
        tokenizer = tokenizer or train_tokenizer(config)
        tokenizer.save(folder / TOKENIZER_FOLDER)
        builder = SampleBuilder(config, tokenizer)
        built = _build_all(folder, builder, tokenizer, workers or config.workers)
        np.save(folder / INDEX_FILE, np.concatenate([shard.index for shard in built]))
        totals = sum(shard.totals for shard in built)
        manifest = make_manifest(
            config,
            tokenizer.fingerprint,
            tuple(shard.size for shard in built),
            tuple(_stage_counts(row) for row in totals),
        )
        manifest.save(folder)
    return manifest


@dataclass(frozen=True)
class _Shard:
    """What building a shard tells: its bytes, index rows, and _TOTALS for each stage."""

    size: int
    index: np.ndarray  # [samples of the shard], INDEX_DTYPE
    totals: np.ndarray  # [stages, len(_TOTALS)]


def _build_all(
    folder: Path, builder: SampleBuilder, tokenizer: Tokenizer, workers: int
) -> list[_Shard]:
    config = builder.config
    count = -(-config.samples // config.shard_samples)
    with _progress() as progress:
        task = progress.add_task("building shards", total=config.samples)
        if workers == 1:
            built = []
            for shard in range(count):
                built.append(_build_shard(folder, builder, tokenizer, shard))
                progress.update(task, advance=len(built[-1].index))
            return built
        with ProcessPoolExecutor(
            min(workers, count), get_context("spawn"), _start_worker, (folder, builder, tokenizer)
        ) as pool:
            futures = [pool.submit(_build_in_worker, shard) for shard in range(count)]
            try:
                for future in as_completed(futures):
                    progress.update(task, advance=len(future.result().index))
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that builds shards died (out of memory?): lower data.workers"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
            return [future.result() for future in futures]


_worker: tuple[Path, SampleBuilder, Tokenizer]


def _start_worker(folder: Path, builder: SampleBuilder, tokenizer: Tokenizer) -> None:
    global _worker
    _worker = folder, builder, tokenizer


def _build_in_worker(shard: int) -> _Shard:
    return _build_shard(*_worker, shard)


def _build_shard(folder: Path, builder: SampleBuilder, tokenizer: Tokenizer, shard: int) -> _Shard:
    from webdataset import ShardWriter

    config = builder.config
    first = shard * config.shard_samples
    last = min(first + config.shard_samples, config.samples)
    path = folder / shard_name(shard)
    totals = np.zeros((len(config.stages), len(_TOTALS)))
    # One file exactly, so no limit of size; mtime 0 and no encoder, so equal bytes every time.
    with ShardWriter(
        str(path).replace("%", "%%").replace(shard_name(shard), "shard-%06d.tar"),
        maxcount=config.shard_samples,
        maxsize=float("inf"),
        start_shard=shard,
        verbose=0,
        mtime=0,
        encoder=False,
    ) as writer:
        for i in range(first, last):
            sample = builder.build(i)
            writer.write({"__key__": f"{i:09d}", "json": sample.to_bytes()})
            measured = i % _MEASURED_EVERY == 0
            totals[builder.stage(i)] += _count(sample, tokenizer if measured else None)
    stages = [builder.stage(i) for i in range(first, last)]
    return _Shard(path.stat().st_size, _index(path, shard, stages), totals)


def _index(path: Path, shard: int, stages: list[int]) -> np.ndarray:
    """Where each sample lies in the finished tar, read back from the tar itself."""
    index = np.zeros(len(stages), INDEX_DTYPE)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        for row, (member, stage) in enumerate(zip(tar, stages, strict=True)):
            file.seek(member.offset_data)
            crc = zlib.crc32(file.read(member.size))
            index[row] = shard, stage, member.offset_data, member.size, crc
    return index


def _count(sample: Sample, tokenizer: Tokenizer | None) -> np.ndarray:
    """_TOTALS of one sample; tokens are counted where a tokenizer is given."""
    counts = [1, len(sample.documents), len(sample.contexts), 0, 0, 0]
    if tokenizer is not None:
        documents = (document_pieces(d.number, d.text) for d in sample.documents)
        contexts = map(context_pieces, sample.contexts)
        counts[3:] = (
            1,
            *(
                sum(len(tokenizer.encode_pieces(pieces).tokens) for pieces in group)
                for group in (documents, contexts)
            ),
        )
    return np.array(counts, dtype=np.float64)


def _stage_counts(totals: np.ndarray) -> StageCounts:
    samples, documents, contexts, measured, document_tokens, context_tokens = totals.tolist()
    return StageCounts(
        int(samples),
        int(documents),
        int(contexts),
        int(measured),
        document_tokens / max(measured, 1),
        context_tokens / max(measured, 1),
    )


@contextmanager
def _renamed_at_end(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place if all goes well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp keeps it to its owner
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
