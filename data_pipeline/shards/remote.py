"""Where shards lie: a folder, or a URL with a local cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import INDEX_FILE, MANIFEST_FILE, TOKENIZER_FOLDER
from data_pipeline.tokenizer import FILES, MODEL_FILE


def is_url(location: Path | str) -> bool:
    return re.match(r"[a-z0-9+]+://", str(location)) is not None


class LocalFiles:
    """Files of a folder by name, kept open.

    folder: where manifest, index and tokenizer lie. place: for messages.
    """

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)
        self._open: dict[str, int] = {}

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when it is missing."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer at its end. Raises OSError."""
        if name not in self._open:
            self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        return os.pread(self._open[name], size, offset)

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()


class RemoteFiles:
    """As LocalFiles, behind a URL. A file is copied whole into `cache` when it is first read; when
    those there hold cache_gb, samples of others are read one by one. Ranks of a node share a cache.
    """

    def __init__(self, url: str, cache: Path, cache_gb: float):
        self.folder, self.place = cache, url.rstrip("/")
        self._limit = int(cache_gb * 1e9)
        self._system, self._root = _connect(self.place)
        self._sizes: dict[str, int | None] = {}
        self._cached = LocalFiles(cache)
        tokenizer = (f"{TOKENIZER_FOLDER}/{name}" for name in FILES)
        for name in (MANIFEST_FILE, INDEX_FILE, *tokenizer):
            try:
                self._fetch(name)  # always anew: the set behind the URL may be another one now
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and name.endswith(MODEL_FILE):
                    continue  # not every tokenizer has one
                raise DataError(
                    f"{self.place}/{name} cannot be read ({error}): give the URL of a shard set"
                ) from error

    def size(self, name: str) -> int | None:
        if name not in self._sizes:
            try:
                self._sizes[name] = self._system.size(self._path(name))
            except FileNotFoundError:
                self._sizes[name] = None
            except (OSError, ValueError) as error:
                raise DataError(f"{self.place}/{name} cannot be reached: {error}") from error
        return self._sizes[name]

    def read(self, name: str, offset: int, size: int) -> bytes:
        whole = self.size(name)
        if whole is None:
            raise FileNotFoundError(2, "No such file", f"{self.place}/{name}")
        if self._cached.size(name) != whole:
            if self._used() + whole > self._limit:
                return self._system.cat_file(self._path(name), offset, offset + size)
            self._fetch(name)
        return self._cached.read(name, offset, size)

    def close(self) -> None:
        self._cached.close()

    def _used(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.tar"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _fetch(self, name: str) -> None:
        """Copy a file into the cache; it appears whole, whoever else copies it too."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as partial:
            self._system.get_file(self._path(name), str(partial))


def _connect(url: str):
    """(file system, root path on it) of a URL. Raises DataError for an unknown kind."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from error
