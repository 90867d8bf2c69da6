"""Copy a shard set to where a URL leads, so that it is there whole or not at all.

URL/upload.json          which set is on its way: as long as it is, nobody else's goes there
URL/shard-000000.tar ... a store shows an object once it is whole
URL/manifest.json        last: a set without it is none
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.processes import InterruptedBuild
from data_pipeline.progress import ProgressBar
from data_pipeline.shards.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    ShardManifest,
    shard_name,
)
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.remote import ASKED_AT_ONCE, RemoteFolder, is_url

UNDER_WAY = "upload.json"
_NO_BUCKETS = ("http", "https", "file", "local")
_COPIED_AT_ONCE = 8


@dataclass(frozen=True)
class Uploaded:
    """Files that were copied, their bytes, and how many were there already."""

    files: int
    bytes: int
    kept: int


def upload_shards(folder: Path | str, url: str) -> Uploaded:
    """Copy the shard set of a folder to a URL, manifest last.

    What an interrupted upload of this very set has left is kept. Raises DataError where the folder
    holds no whole set, the URL cannot be written to, or holds something else.
    """
    if not is_url(url) or url.partition("://")[0] in _NO_BUCKETS:
        raise DataError(
            f"{url} is no bucket: give the URL of one, as s3://BUCKET/PATH; to a folder or a web "
            "server shards are copied"
        )
    folder = Path(folder)
    ShardReader(folder).close()  # whole, or refused
    there, own = RemoteFolder(url), _identity(folder)
    finished = _finished(there, folder)
    if not finished:
        _claim(there, own)
    files = _files(folder)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        sizes = dict(zip(files, pool.map(there.size, files), strict=True))
    copied = [name for name in files if sizes[name] != _size(folder, name)]
    kept = len(files) - len(copied) + finished
    _copy_all(there, folder, copied)
    if not finished:
        if _claimed(there) != own:
            raise DataError(f"{there.of(UNDER_WAY)} is of another shard set now: give another URL")
        _copy(there, folder, MANIFEST_FILE)
        _written(there, UNDER_WAY, there.system.rm_file)
        copied.append(MANIFEST_FILE)
    return Uploaded(len(copied), sum(_size(folder, name) for name in copied), kept)


def _finished(there: RemoteFolder, folder: Path) -> bool:
    """Whether this very set was uploaded before. Raises DataError where another one was."""
    if there.size(MANIFEST_FILE) is None:
        return False
    for name in (MANIFEST_FILE, INDEX_FILE):
        if _read(there, name) != (folder / name).read_bytes():
            raise DataError(f"{there.of(name)} is of another shard set: give another URL")
    return True


def _files(folder: Path) -> list[str]:
    """All but the manifest, by their path in the set."""
    shards = range(len(ShardManifest.load(folder).shards))
    tokenizer = sorted(path for path in (folder / TOKENIZER_FOLDER).rglob("*") if path.is_file())
    return [
        INDEX_FILE,
        *(str(path.relative_to(folder)) for path in tokenizer),
        *map(shard_name, shards),
    ]


def _identity(folder: Path) -> str:
    """The index has a checksum of every sample."""
    digest = hashlib.sha256((folder / MANIFEST_FILE).read_bytes())
    digest.update((folder / INDEX_FILE).read_bytes())
    return digest.hexdigest()


def _claim(there: RemoteFolder, own: str) -> None:
    """Refuses a place where another set, or what is none, was begun."""
    found = _claimed(there)
    if found is None:
        if there.size(shard_name(0)) is not None:
            raise DataError(
                f"{there.of(shard_name(0))} is there, but neither {MANIFEST_FILE} nor "
                f"{UNDER_WAY} to say of which set: remove it, or give another URL"
            )
        note = json.dumps({"set": own}).encode()
        _written(there, UNDER_WAY, lambda path: there.system.pipe_file(path, note))
    elif found != own:
        raise DataError(
            f"{there.of(UNDER_WAY)} is of another shard set, whose upload has not ended: remove "
            "what is there, or give another URL"
        )


def _claimed(there: RemoteFolder) -> str | None:
    if there.size(UNDER_WAY) is None:
        return None
    try:
        return json.loads(_read(there, UNDER_WAY))["set"]
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _copy_all(there: RemoteFolder, folder: Path, names: list[str]) -> None:
    total = sum(_size(folder, name) for name in names)
    bar = ProgressBar("uploading shards", "bytes", total)
    with bar as progress, ThreadPoolExecutor(_COPIED_AT_ONCE) as pool:
        copies = {pool.submit(_copy, there, folder, name): name for name in names}
        try:
            for copy in as_completed(copies):
                copy.result()
                progress.advance(_size(folder, copies[copy]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy(there: RemoteFolder, folder: Path, name: str) -> None:
    def put(path: str) -> None:
        there.system.put_file(str(folder / name), path)
        if (came := there.system.size(path)) != _size(folder, name):
            raise ConnectionError(f"only {came} of {_size(folder, name)} bytes are there")

    _written(there, name, put)


def _written(there: RemoteFolder, name: str, call: Callable[[str], object]) -> None:
    try:
        there.tried(name, call)
    except OSError as error:
        raise InterruptedBuild(
            f"{there.of(name)} cannot be written ({error}): upload again, what is there is kept"
        ) from error


def _read(there: RemoteFolder, name: str) -> bytes:
    try:
        return there.tried(name, there.system.cat_file)
    except OSError as error:
        raise DataError(f"{there.of(name)} cannot be read ({error})") from error


def _size(folder: Path, name: str) -> int:
    return os.stat(folder / name).st_size
