"""A bank on disk while questions are asked of it: always its newest committed state."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import MANIFEST
from msa_train.memory.bank.snapshot import BankSnapshot, GenerationGoneError, tries
from msa_train.memory.search.hybrid import WordIndexes
from msa_train.memory.search.loader import BankLoader
from msa_train.memory.search.searcher import Searcher
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.view import MemoryView
from msa_train.model.config import RouterConfig
from msa_train.model.decoder import MSADecoder


class SearchRanks(Protocol):
    """Several processes that divide the documents of snapshots among them."""

    def searcher(self, bank: BankSnapshot, router: RouterConfig) -> Searcher:
        """Raises GenerationGoneError where the bank was compacted before all had opened it."""


class LiveBank:
    """What a server or a command asks. Thread-safe; a view that was taken stays as it is.

    fingerprint: of `model`; a bank that another model built is refused. ranks: what searches it
    (None: this process, by `settings`). words: its texts are searched by words, too (None: not).
    bank: the newest snapshot that was opened.

    Raises BankError for what is missing, damaged or built by other weights.
    """

    def __init__(
        self,
        path: Path | str,
        model: MSADecoder,
        fingerprint: Mapping[str, str],
        settings: TierSettings | None = None,
        ranks: SearchRanks | None = None,
        words: WordIndexes | None = None,
    ):
        device = model.device
        self.path, self._router = Path(path), model.config.router
        self._fingerprint = dict(fingerprint)
        self._searchers = ranks or BankLoader(settings or TierSettings(), device)
        self._words = words
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self.bank: BankSnapshot | None = None
        self._view: MemoryView | None = None
        self.refresh()

    @property
    def view(self) -> MemoryView:
        """The newest committed state, whoever committed it."""
        if self._stat() != self._seen:
            self.refresh()
        assert self._view is not None
        return self._view

    def refresh(self) -> MemoryView:
        """Opens what was committed since; its cost is that of what changed."""
        with self._lock:
            seen = self._stat()
            self._open_newest()
            self._seen = seen
            return self._view

    def close(self) -> None:
        """Lets go of the bank; ranks go on with others."""
        if isinstance(self._searchers, BankLoader):
            self._searchers.close()

    def _open_newest(self) -> None:
        gone = GenerationGoneError(f"{self.path} cannot be opened")
        for _ in tries():
            try:
                return self._take(BankSnapshot.open(self.path, self._fingerprint, self.bank))
            except GenerationGoneError as error:  # another process came too late
                gone = error
        raise gone

    def _take(self, bank: BankSnapshot) -> None:
        # A bank that was built again in its place may be of the same generation.
        if self.bank is None or bank.manifest != self.bank.manifest:
            searcher = self._searchers.searcher(bank, self._router)
            words = None if self._words is None else self._words.of(bank)
            self._view = MemoryView.of(bank, searcher, self._router, words)
            self.bank = bank

    def _stat(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path / MANIFEST)
        except OSError as error:
            raise BankError(f"{self.path} is no memory bank any more: {error}") from error
        return found.st_ino, found.st_mtime_ns, found.st_size
