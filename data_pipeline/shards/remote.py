"""Where shards lie: a folder, or behind a URL with a local cache."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import INDEX_FILE, MANIFEST_FILE, TOKENIZER_FOLDER
from data_pipeline.tokenizer import FILES, MODEL_FILE

T = TypeVar("T")
# A try ends when nothing has come for this long, not after a time in all: shards are large.
CONNECT_S, SILENCE_S = 10, 30
TRIES, FIRST_PAUSE_S = 5, 0.5  # the pause doubles: 7.5 s in all
ASKED_AT_ONCE = 16  # sizes of files


def is_url(location: Path | str) -> bool:
    return re.match(r"[a-z0-9+]+://", str(location)) is not None


class LocalFiles:
    """Files of a folder by name, kept open. Threads may read at once.

    folder: where manifest, index and tokenizer lie. place: for messages. ahead: how many samples
    are worth reading at once, before they are needed.
    """

    ahead = 0

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def sizes(self, names: Iterable[str]) -> list[int | None]:
        """Bytes of each file, None where it is missing."""
        return list(map(self.size, names))

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer at its end. Raises OSError."""
        with self._lock:
            if name not in self._open:
                self._open[name] = os.open(self.folder / name, os.O_RDONLY)
            file = self._open[name]
        return os.pread(file, size, offset)

    def again(self, name: str, offset: int, size: int) -> bytes | None:
        """What `read` gave was damaged: the bytes from a better place, if there is one."""

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()


class RemoteFolder:
    """A folder behind a URL, by the path of each file in it.

    What fails is tried again, TRIES times in all, except where the server says that it is missing
    or forbidden. Raises DataError for a kind of URL that fsspec does not know.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.system, self._root = _connect(self.url)

    def of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def tried(self, name: str, call: Callable[[str], T]) -> T:
        """call(path on the file system), tried again where that may help.

        Raises FileNotFoundError, else OSError that says what was wrong the last time.
        """
        for number in range(TRIES):
            if number:
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
            try:
                return call(f"{self._root}/{name}")
            except Exception as error:  # each driver has its own kinds
                last = _reason(error)
                if isinstance(last, FileNotFoundError | PermissionError):
                    raise last from error
        raise OSError(f"{_said(last)}; {TRIES} tries") from last

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where it is missing. Raises DataError."""
        try:
            return self.tried(name, self.system.size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{self.of(name)} cannot be reached: {error}") from error


class RemoteFiles:
    """As LocalFiles, behind a URL. A file is copied whole into `cache` when it is first read; when
    those there hold cache_gb, and while another process copies it, samples are read one by one.

    Ranks of a node share a cache.
    """

    ahead = 8

    def __init__(self, url: str, cache: Path, cache_gb: float):
        self._remote = RemoteFolder(url)
        self.folder, self.place = cache, self._remote.url
        self._limit = int(cache_gb * 1e9)
        self._sizes: dict[str, int | None] = {}
        self._cached = LocalFiles(cache)
        self._lock, self._coming = threading.Lock(), 0  # bytes that are being copied
        tokenizer = (f"{TOKENIZER_FOLDER}/{name}" for name in FILES)
        for name in (MANIFEST_FILE, INDEX_FILE, *tokenizer):
            try:
                self._fetch(name)  # always anew: the set behind the URL may be another one now
            except OSError as error:
                if isinstance(error, FileNotFoundError) and name.endswith(MODEL_FILE):
                    continue  # not every tokenizer has one
                raise DataError(
                    f"{self._remote.of(name)} cannot be read ({error}): give the URL of a shard set"
                ) from error

    def sizes(self, names: Iterable[str]) -> list[int | None]:
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return list(pool.map(self.size, names))

    def size(self, name: str) -> int | None:
        if name not in self._sizes:
            self._sizes[name] = self._remote.size(name)
        return self._sizes[name]

    def read(self, name: str, offset: int, size: int) -> bytes:
        whole = self.size(name)
        if whole is None:
            raise FileNotFoundError(2, "No such file", self._remote.of(name))
        if self._cached.size(name) != whole and not self._copied(name, whole):
            return self._read_there(name, offset, size)
        return self._cached.read(name, offset, size)

    def again(self, name: str, offset: int, size: int) -> bytes | None:
        """What was damaged on the way, or lies damaged in the cache."""
        return self._read_there(name, offset, size)

    def close(self) -> None:
        self._cached.close()

    def _read_there(self, name: str, offset: int, size: int) -> bytes:
        def read(path: str) -> bytes:
            data = self._remote.system.cat_file(path, start=offset, end=offset + size)
            if len(data) > size:
                raise PermissionError("the server sends whole files only: raise training.cache_gb")
            if len(data) < min(size, (self.size(name) or 0) - offset):
                raise ConnectionError(f"only {len(data)} of {size} bytes came")
            return data

        return self._remote.tried(name, read)

    def _copied(self, name: str, size: int) -> bool:
        """Whether the file is in the cache now: not where there is no room, nor while another
        process or thread copies it."""
        with _alone(self.folder / f".{name}.lock") as alone:
            if not alone:
                return False
            if self._cached.size(name) == size:  # it came meanwhile
                return True
            with self._lock:
                if self._used() + self._coming + size > self._limit:
                    return False
                self._coming += size
            try:
                self._fetch(name, size)
            finally:
                with self._lock:
                    self._coming -= size
        return True

    def _used(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.tar"))

    def _fetch(self, name: str, size: int | None = None) -> None:
        """Copy a file into the cache; it appears whole, whoever else copies it too."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)

        def copy(path: str) -> None:
            self._remote.system.get_file(path, str(partial))
            if size is not None and (came := partial.stat().st_size) != size:
                raise ConnectionError(f"only {came} of {size} bytes came")

        with files.whole(target) as partial:
            self._remote.tried(name, copy)


def _reason(error: Exception) -> Exception:
    """What a driver means: that of HTTP calls whatever goes wrong with a size a missing file."""
    cause = error.__cause__
    of_http = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    missing = isinstance(error, FileNotFoundError)
    if missing and of_http and getattr(cause, "status", None) != 404:
        error = cause
    if getattr(error, "status", None) in (401, 403):
        return PermissionError(f"not allowed: {error}")
    return error


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"timed out: no connection in {CONNECT_S} s, or no data for {SILENCE_S} s"
    return str(error) or type(error).__name__


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether nobody else is in this block now; a process that dies is not. Where the file system
    has no locks everybody is alone: a file is copied more than once then, and comes whole."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError as error:
            alone = not isinstance(error, BlockingIOError)
        yield alone
    finally:
        os.close(descriptor)


def _connect(url: str) -> tuple[Any, str]:
    """(file system, root path on it) of a URL. Raises DataError for an unknown kind."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url, **_patience(url.partition("://")[0]))
        system.retries = 1  # of s3fs: trying again is done here
        return system, root
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from error


def _patience(kind: str) -> dict[str, Any]:
    """Timeouts, as each driver has them."""
    if kind in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        return {"client_kwargs": {"timeout": timeout}}
    if kind in ("s3", "s3a"):
        waits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S}
        return {"config_kwargs": waits | {"retries": {"total_max_attempts": 1}}}
    if kind in ("gs", "gcs"):
        return {"timeout": SILENCE_S}
    return {}
