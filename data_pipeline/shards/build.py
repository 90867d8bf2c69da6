"""Build standard WebDataset shards: the same bytes for the same settings and tokenizer.

Shards are built by any number of processes, in a hidden folder that is renamed at the end: a folder
with a manifest is complete. An interrupted build is taken up again.
"""

from __future__ import annotations

import json
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.leases import LEASES
from data_pipeline.processes import InterruptedBuild, workers_of
from data_pipeline.progress import ProgressBar
from data_pipeline.protocol import context_pieces, document_pieces
from data_pipeline.schema import Sample
from data_pipeline.settings import TrainingCorpus
from data_pipeline.shards.manifest import (
    INDEX_DTYPE,
    INDEX_FILE,
    TOKENIZER_FOLDER,
    ShardManifest,
    StageCounts,
    shard_name,
)
from data_pipeline.shards.parts import (
    BuildPart,
    any_begun,
    missing,
    preparing,
    whole_build,
)
from data_pipeline.shards.sampling import SampleBuilder, preparations
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.tokenizer_training import corpus_tokenizer

_TOTALS = ("samples", "documents", "contexts", "measured", "document_tokens", "context_tokens")
_BUILD = "build.json"  # what an unfinished build builds
_MEASURED_EVERY = 32  # tokenising a sample costs more than building it


def build_shards(
    corpus: TrainingCorpus,
    out_dir: Path | str,
    workers: int | None = None,
    tokenizer: Tokenizer | None = None,
    held_out: bool = False,
    seal: bool = False,
) -> ShardManifest:
    """Build the shards of a corpus into out_dir, which must not exist yet (or be empty).

    A build that was interrupted is taken up where it stopped, if corpus and tokenizer are the same,
    and so are parts. workers: processes (None: data.workers). tokenizer: None takes the one of
    data.tokenizer; either way it is saved with the shards. held_out: what training does not see.
    seal: build no shard, all parts must have been.
    Raises DataError when out_dir is in use, or when the settings cannot be met.
    """
    out, partial = _places(out_dir)
    workers = workers or corpus.data.workers
    partial.mkdir(exist_ok=True)
    with files.naming(partial), whole_build(partial) as check, _kept(partial):
        if any_begun(partial):
            _check_same(partial, corpus, held_out)
        elif seal:
            raise DataError(f"no part of {out} was built: msa data build --part K/N builds one")
        builder = _begin(out, partial, corpus, tokenizer, held_out, workers)
        shards = range(_shard_count(builder))
        if seal and (lacking := [i for i in shards if _built(partial, i) is None]):
            raise InterruptedBuild(f"{out}: {missing(partial, lacking)}: run those parts again")
        built = _build_all(partial, builder, workers, shards, check)
        with files.whole(partial / INDEX_FILE) as index:
            np.save(index, np.concatenate([shard.index for shard in built]))
        totals = sum(shard.totals for shard in built)
        manifest = ShardManifest(
            corpus.settings(),
            builder.tokenizer.fingerprint,
            len(builder),
            tuple(shard.size for shard in built),
            tuple(map(_stage_counts, totals, (stage.epochs for stage in corpus.stages))),
            corpus.batch_samples,
        )
        check()
        manifest.save(partial)
        notes = {*partial.glob("*.npz"), *partial.glob(".*"), *partial.glob(_half("*", "*"))}
        for note in {*notes, partial / _BUILD}:
            files.remove(note)
        files.sync_tree(partial)
        files.rename(partial, out)
    return manifest


def build_part(
    corpus: TrainingCorpus, out_dir: Path | str, part: BuildPart, workers: int | None = None
) -> int:
    """Build a part of the shards, which build_shards puts together. Returns how many it has.

    Parts may be built at once, by any number of machines; which of them begins prepares what all
    read. Raises DataError as build_shards, and where an unfinished build is of other settings.
    """
    out, partial = _places(out_dir)
    workers = workers or corpus.data.workers
    partial.mkdir(exist_ok=True)
    with files.naming(partial), part.held(partial) as check:
        with preparing(partial):
            _check_same(partial, corpus, held_out=False)
            builder = _begin(out, partial, corpus, None, False, workers)
        shards = part.shards(_shard_count(builder))
        _build_all(partial, builder, workers, shards, check)
    return len(shards)


def _places(out_dir: Path | str) -> tuple[Path, Path]:
    """Where shards are to be, and the hidden folder in which they are built until all are."""
    out = Path(out_dir).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: remove it, or give another folder for the shards")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out, out.parent / f".{out.name}.partial"


def _begin(
    out: Path,
    partial: Path,
    corpus: TrainingCorpus,
    tokenizer: Tokenizer | None,
    held_out: bool,
    workers: int,
) -> SampleBuilder:
    """Prepare what samples are made of; what is there of this very corpus is kept."""
    if tokenizer is None and _begun(partial) == _settings(corpus, held_out):
        tokenizer = load_tokenizer(partial / TOKENIZER_FOLDER)
    tokenizer = tokenizer or corpus_tokenizer(corpus)
    _take_up(partial, corpus, tokenizer, held_out)
    prepared = out.parent / "prepared"
    _prepare_all(preparations(corpus, tokenizer, prepared, held_out), workers)
    return SampleBuilder(corpus, tokenizer, prepared, held_out)


def rebuild_shards(
    corpus: TrainingCorpus, out_dir: Path | str, workers: int | None = None, held_out: bool = False
) -> ShardManifest:
    """Build a corpus in place of the shards in out_dir, by their tokenizer.

    Those stay as they are until the new ones are whole. Raises as build_shards.
    """
    out = Path(out_dir).resolve()
    fresh, old = _fresh(out), out.with_name(f".{out.name}.replaced")
    if fresh.exists() and not ShardManifest.load(fresh).matches(corpus):
        files.remove(fresh)
    if not fresh.exists():
        tokenizer = load_tokenizer(out / TOKENIZER_FOLDER)
        build_shards(corpus, fresh, workers, tokenizer, held_out)
    if old.exists():
        files.remove(old)
    files.rename(out, old)
    finish_exchange(out)
    files.remove(old)
    return ShardManifest.load(out)


def finish_exchange(out_dir: Path | str) -> None:
    """Put rebuilt shards in their place where a death came between the two names."""
    out = Path(out_dir).resolve()
    if not out.exists() and _fresh(out).exists():
        files.rename(_fresh(out), out)


def _fresh(out: Path) -> Path:
    return out.with_name(f".{out.name}.next")


@dataclass(frozen=True)
class _Shard:
    """A finished shard: its size in bytes, its index rows, and _TOTALS for each stage."""

    size: int
    index: np.ndarray  # [samples of the shard], INDEX_DTYPE
    totals: np.ndarray  # [stages, len(_TOTALS)]


def _prepare_all(calls: list[Callable[[], Any]], workers: int) -> None:
    """Make what the sources need on disk; what is there is kept."""
    if workers == 1 or len(calls) < 2:
        for call in calls:
            call()
        return
    bar = ProgressBar("preparing datasets", "datasets", len(calls))
    with bar as progress, workers_of(min(workers, len(calls))) as pool:
        for future in as_completed(map(pool.submit, calls)):
            future.result()
            progress.advance(1)


def _shard_count(builder: SampleBuilder) -> int:
    return -(-len(builder) // builder.corpus.data.shard_samples)


def _build_all(
    folder: Path,
    builder: SampleBuilder,
    workers: int,
    shards: range,
    check: Callable[[], None],
) -> list[_Shard]:
    """These shards, in their order; those that are there are kept. check: before each, whether
    they are still this process's to build."""
    built = {shard: found for shard in shards if (found := _built(folder, shard)) is not None}
    lacking = [shard for shard in shards if shard not in built]
    size = builder.corpus.data.shard_samples
    samples = sum(min(size, len(builder) - shard * size) for shard in shards)
    with ProgressBar("building shards", "samples", samples) as progress:
        progress.advance(sum(len(shard.index) for shard in built.values()))
        if workers == 1:
            for shard in lacking:
                check()
                built[shard] = _build_shard(folder, builder, shard)
                progress.advance(len(built[shard].index))
            return [built[shard] for shard in shards]
        with workers_of(max(1, min(workers, len(lacking))), _start_worker, folder, builder) as pool:
            futures = {pool.submit(_build_in_worker, shard): shard for shard in lacking}
            for future in as_completed(futures):
                check()
                built[futures[future]] = future.result()
                progress.advance(len(future.result().index))
            return [built[shard] for shard in shards]


_worker: tuple[Path, SampleBuilder]


def _start_worker(folder: Path, builder: SampleBuilder) -> None:
    global _worker
    _worker = folder, builder


def _build_in_worker(shard: int) -> _Shard:
    return _build_shard(*_worker, shard)


def _build_shard(folder: Path, builder: SampleBuilder, shard: int) -> _Shard:
    from webdataset import ShardWriter

    size = builder.corpus.data.shard_samples
    first, last = shard * size, min((shard + 1) * size, len(builder))
    for left in folder.glob(_half("*", f"{shard:06d}")):
        files.remove(left)
    path, token = folder / shard_name(shard), secrets.token_hex(4)
    partial = folder / _half(token, f"{shard:06d}")
    totals = np.zeros((len(builder.corpus.stages), len(_TOTALS)))
    # One file exactly, so no limit of size; mtime 0 and no encoder, so equal bytes every time.
    with ShardWriter(
        str(folder).replace("%", "%%") + f"/{_half(token, '%06d')}",
        maxcount=size,
        maxsize=float("inf"),
        start_shard=shard,
        verbose=0,
        mtime=0,
        encoder=False,
    ) as writer:
        for i in range(first, last):
            sample = builder.build(i)
            writer.write({"__key__": f"{i:09d}", "json": sample.to_bytes()})
            measured = i % _MEASURED_EVERY == 0 or i == first
            totals[builder.stage(i)] += _count(sample, builder.tokenizer if measured else None)
    stages = [builder.stage(i) for i in range(first, last)]
    index = _index(partial, shard, stages)
    files.sync(partial)
    files.rename(partial, path)
    with files.whole(_note(folder, shard)) as note:  # last: now the shard is done
        np.savez(note, index=index, totals=totals)
    return _Shard(path.stat().st_size, index, totals)


def _half(token: str, shard: str) -> str:
    """Name of a shard that is being written. One that was taken for dead may write the same."""
    return f"partial-{token}-shard-{shard}.tar"


def _note(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.npz"


def _built(folder: Path, shard: int) -> _Shard | None:
    """A shard that an interrupted build had finished."""
    path, note = folder / shard_name(shard), _note(folder, shard)
    try:
        with np.load(note) as found:
            index, totals = found["index"], found["totals"]
        size = path.stat().st_size
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return _Shard(size, index, totals)


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
        tokens = (
            sum(len(tokenizer.encode_pieces(pieces).tokens) for pieces in group)
            for group in (documents, contexts)
        )
        counts[3:] = (1, *tokens)
    return np.array(counts, dtype=np.float64)


def _stage_counts(totals: np.ndarray, epochs: int) -> StageCounts:
    samples, documents, contexts, measured, document_tokens, context_tokens = totals.tolist()
    return StageCounts(
        int(samples),
        epochs,
        int(documents),
        int(contexts),
        int(measured),
        document_tokens / max(measured, 1),
        context_tokens / max(measured, 1),
    )


@contextmanager
def _kept(partial: Path) -> Iterator[None]:
    """What was built stays when a build is interrupted; impossible settings leave nothing."""
    try:
        yield
    except InterruptedBuild:
        raise
    except DataError:
        if not any_begun(partial):
            with suppress(OSError):
                files.remove(partial)
        raise


def _take_up(partial: Path, corpus: TrainingCorpus, tokenizer: Tokenizer, held_out: bool) -> None:
    """Keep what an interrupted build of this very corpus left, and nothing else."""
    build = [*_settings(corpus, held_out), tokenizer.fingerprint]
    if _begun(partial, whole=True) != build:
        for path in partial.iterdir():
            if not path.match(LEASES):
                files.remove(path)
        tokenizer.save(partial / TOKENIZER_FOLDER)
        files.replace_file(partial / _BUILD, json.dumps(build))


def _settings(corpus: TrainingCorpus, held_out: bool) -> list[Any]:
    return [corpus.settings(), held_out]


def _check_same(partial: Path, corpus: TrainingCorpus, held_out: bool) -> None:
    """Parts may be hours of work: they are not removed for other settings."""
    if _begun(partial) not in (None, _settings(corpus, held_out)):
        raise DataError(
            f"{partial} holds an unfinished build of other settings: remove it, or set another "
            "output"
        )


def _begun(partial: Path, whole: bool = False) -> list[Any] | None:
    """What an unfinished build is of: settings, and, of the whole note, the tokenizer too."""
    try:
        found = json.loads((partial / _BUILD).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, list):
        return None
    return found if whole else found[:2]
