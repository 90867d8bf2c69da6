"""The banks of a server, by name: opened, made and dropped."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import files
from data_pipeline.tokenizer import Tokenizer
from msa_train.errors import BankError, ConfigError, RankError
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.lock import WriterLock
from msa_train.memory.bank.manifest import MANIFEST, SEGMENTS
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import UnknownDocumentError
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder
from msa_train.serving.errors import ApiError, to_api_error
from msa_train.serving.threads import GoingOn

log = logging.getLogger("msa_train.serving")
_WAIT_S = 0.2  # until somebody who waits to write looks whether to go on
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class ServedModel:
    """A model under its name, with all that its banks are built with."""

    name: str
    model: MSADecoder
    tokenizer: Tokenizer
    fingerprint: dict[str, str]


class ServedBank:
    """A bank under its name. droppable: it is in the folder in which the server may drop banks.
    live: why there is none where it could not be opened; every use of it then is ApiError 503."""

    def __init__(self, name: str, path: Path, live: LiveBank | BankError, droppable: bool):
        self.name, self.path, self.droppable = name, path, droppable
        self._opened, self._writing = live, threading.Lock()
        self.dropped = False

    @property
    def error(self) -> BankError | None:
        """Why it could not be opened when the server started; None where it was."""
        return self._opened if isinstance(self._opened, BankError) else None

    @property
    def _live(self) -> LiveBank:
        if isinstance(self._opened, BankError):
            told = f"{self._told(self._opened)}; mend it, then start the server again"
            raise ApiError(503, "bank_unavailable", told)
        return self._opened

    @property
    def snapshot(self) -> BankSnapshot:
        """The newest snapshot that was opened."""
        live = self._live
        assert live.bank is not None
        return live.bank

    def view(self) -> MemoryView:
        """The newest committed state, also of another process. Blocks while it is opened."""
        self._check_not_dropped()
        return self._live.view

    def document(self, number: int) -> StoredDocument:
        """Of the newest committed state. Raises ApiError 404."""
        self.view()
        try:
            with self.named_errors():
                return self.snapshot[number]
        except KeyError:
            raise self.no_document(str(number)) from None

    @contextlib.contextmanager
    def writing(self, timeout_s: float, going_on: GoingOn = lambda: None) -> Iterator[None]:
        """One writer of this server at a time. Raises ApiError 409 after `timeout_s`; going_on:
        called while it waits, it raises to stop."""
        end = time.monotonic() + timeout_s
        while not self._writing.acquire(timeout=min(_WAIT_S, timeout_s)):
            going_on()
            if time.monotonic() < end:
                continue
            raise ApiError(
                409, "writer_busy", f"bank {self.name!r} is being changed by other requests"
            )
        try:
            self._check_not_dropped()
            yield
        finally:
            self._writing.release()

    def info(self) -> dict[str, Any]:
        """Sizes of the newest state, or of the last one that could be opened; not where it lies."""
        with contextlib.suppress(BankError, ApiError):
            self.view()
        found = {**self.snapshot.info(), "name": self.name, "droppable": self.droppable}
        del found["path"]
        return found

    def summary(self) -> dict[str, Any]:
        """Its info; of one that could not be opened, why: `problem`."""
        if self.error is None:
            return self.info()
        return {
            "name": self.name, "droppable": self.droppable, "problem": self._told(self.error),
        }  # fmt: skip

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """A bank's errors as a client is told them: with its name instead of its folder."""
        try:
            yield
        except UnknownDocumentError as error:
            raise self.no_document(error.which) from None
        except (BankError, RankError) as error:
            told = to_api_error(error)
            raise ApiError(told.status, told.code, self._told(error), told.headers) from error

    def _told(self, error: Exception) -> str:
        return str(error).replace(str(self.path), f"bank {self.name!r}")

    def no_document(self, which: str) -> ApiError:
        return ApiError(404, "document_not_found", f"bank {self.name!r} has no document {which}")

    def close(self) -> None:
        if self.error is None:
            self._live.close()

    def _check_not_dropped(self) -> None:
        if self.dropped:
            raise ApiError(404, "bank_not_found", f"bank {self.name!r} was dropped")


class Banks:
    """Banks by name, in the order in which they came; the first is for requests that name none.

    open_bank: path -> LiveBank. folder: where banks may be made and dropped (None: nowhere). One
    that cannot be opened when the server starts is reported, and does not keep the others from
    being served.
    """

    def __init__(self, open_bank: Callable[[Path], LiveBank], folder: Path | None = None):
        self._open, self._folder = open_bank, folder
        self._banks: dict[str, ServedBank] = {}
        self._changing = threading.Lock()
        if folder is not None:
            self._open_folder(folder)

    def open(self, name: str, path: Path) -> None:
        """Raises ConfigError for a name that is taken."""
        check_name(name)
        if name in self._banks:
            raise ConfigError(f"--bank {name}={path}: there is a bank of this name already")
        self._banks = {name: self._served(name, path, False), **self._banks}

    def __iter__(self) -> Iterator[ServedBank]:
        return iter(list(self._banks.values()))

    @property
    def opened(self) -> list[ServedBank]:
        """Without those that could not be."""
        return [bank for bank in self if bank.error is None]

    def __getitem__(self, name: str | None) -> ServedBank:
        """Raises ApiError 404."""
        banks = self._banks
        if name is None and banks:
            return next(iter(banks.values()))
        if name is None:
            raise ApiError(404, "no_bank", "there is no bank yet: make one first")
        if name not in banks:
            raise ApiError(404, "bank_not_found", f"there is no bank {name!r}")
        return banks[name]

    def create(self, name: str, model: ServedModel) -> ServedBank:
        """An empty bank. Raises ApiError 400, 403 or 409."""
        check_name(name)
        if self._folder is None:
            raise ApiError(
                403,
                "no_banks_dir",
                "this server makes and drops no banks: start it with --banks-dir DIR",
            )
        path = self._folder / name
        with self._changing:
            if name in self._banks or path.exists():
                raise ApiError(409, "bank_exists", f"there is a bank {name!r} already")
            build_bank(path, model.model, model.tokenizer, [], model.fingerprint)
            bank = ServedBank(name, path, self._open(path), True)
            self._banks = {**self._banks, name: bank}
        return bank

    def drop(self, name: str, timeout_s: float) -> None:
        """Renames a bank's folder, then deletes it; answers under way keep what they mapped."""
        bank = self[name]
        if not bank.droppable:
            raise ApiError(
                403,
                "bank_not_droppable",
                f"bank {name!r} was given at the start: only banks in --banks-dir are dropped",
            )
        aside = bank.path.with_name(f".{name}.dropped-{secrets.token_hex(4)}")
        with bank.writing(timeout_s), self._changing, WriterLock(bank.path, "drop"):
            files.rename(bank.path, aside)
            bank.dropped = True
            self._banks = {key: each for key, each in self._banks.items() if key != name}
        bank.close()
        files.remove(aside)

    def close(self) -> None:
        for bank in self:
            bank.close()

    def _open_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise ConfigError(f"--banks-dir {folder}: {error.strerror}; give a folder") from error
        for path in paths:
            if re.fullmatch(re.escape(".") + _NAME.pattern + r"\.dropped-[0-9a-f]{8}", path.name):
                files.remove(path)  # dropped by a server that died before it was deleted
            elif _NAME.fullmatch(path.name) and _looks_like_a_bank(path):
                self._banks[path.name] = self._served(path.name, path, True)

    def _served(self, name: str, path: Path, droppable: bool) -> ServedBank:
        live: LiveBank | BankError
        try:
            live = self._open(path)
        except BankError as error:
            log.error("bank %r is not served: %s", name, error)
            live = error
        return ServedBank(name, path, live, droppable)


def _looks_like_a_bank(path: Path) -> bool:
    """One that lost its manifest is still reported."""
    return (path / MANIFEST).is_file() or (path / SEGMENTS).is_dir()


def check_name(name: str) -> None:
    """Raises ConfigError for an impossible name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a bank's name is {name[:80]!r}: give up to 64 letters, digits, - and _, not - first"
        )
