"""The banks of a server, by name: opened, made and dropped."""

from __future__ import annotations

import contextlib
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
from msa_train.memory.bank.manifest import MANIFEST
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.bank.writer import BankWriter
from msa_train.memory.search.live import LiveBank
from msa_train.memory.search.view import MemoryView
from msa_train.model.decoder import MSADecoder
from msa_train.serving.errors import ApiError, to_api_error

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
    """A bank under its name. droppable: it is in the folder in which the server may drop banks."""

    def __init__(self, name: str, path: Path, live: LiveBank, droppable: bool):
        self.name, self.path, self.droppable = name, path, droppable
        self._live, self._writing = live, threading.Lock()
        self.dropped = False

    @property
    def snapshot(self) -> BankSnapshot:
        """The newest snapshot that was opened."""
        assert self._live.bank is not None
        return self._live.bank

    def view(self) -> MemoryView:
        """The newest committed state, also of another process. Blocks while it is opened."""
        self._check_not_dropped()
        return self._live.view

    @contextlib.contextmanager
    def writing(
        self, timeout_s: float, going_on: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
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
        """Sizes of the newest state, or of the last one that could be opened."""
        with contextlib.suppress(BankError, ApiError):
            self.view()
        return {**self.snapshot.info(), "name": self.name, "droppable": self.droppable}

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """A bank's errors as a client is told them: with its name instead of its folder."""
        try:
            yield
        except (BankError, RankError) as error:
            told = to_api_error(error)
            message = str(error).replace(str(self.path), f"bank {self.name!r}")
            raise ApiError(told.status, told.code, message, told.headers) from error

    def no_document(self, which: str) -> ApiError:
        return ApiError(404, "document_not_found", f"bank {self.name!r} has no document {which}")

    def close(self) -> None:
        self._live.close()

    def _check_not_dropped(self) -> None:
        if self.dropped:
            raise ApiError(404, "bank_not_found", f"bank {self.name!r} was dropped")


class Banks:
    """Banks by name, in the order in which they came; the first is for requests that name none.

    open_bank: path -> LiveBank. folder: where banks may be made and dropped (None: nowhere).
    """

    def __init__(self, open_bank: Callable[[Path], LiveBank], folder: Path | None = None):
        self._open, self._folder = open_bank, folder
        self._banks: dict[str, ServedBank] = {}
        self._changing = threading.Lock()
        if folder is not None:
            self._open_folder(folder)

    def open(self, name: str, path: Path) -> None:
        """Raises ConfigError for a name that is taken, BankError where there is no bank."""
        check_name(name)
        if name in self._banks:
            raise ConfigError(f"--bank {name}={path}: there is a bank of this name already")
        self._banks = {name: ServedBank(name, path, self._open(path), False), **self._banks}

    def __iter__(self) -> Iterator[ServedBank]:
        return iter(list(self._banks.values()))

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
        with bank.writing(timeout_s), BankWriter(bank.path, "drop"), self._changing:
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
            elif _NAME.fullmatch(path.name) and (path / MANIFEST).is_file():
                self._banks[path.name] = ServedBank(path.name, path, self._open(path), True)


def check_name(name: str) -> None:
    """Raises ConfigError for an impossible name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a bank's name is {name[:80]!r}: give up to 64 letters, digits, - and _, not - first"
        )
