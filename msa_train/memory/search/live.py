"""A bank on disk while questions are asked of it: always its newest committed state."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msa_train.errors import BankError
from msa_train.memory.bank.manifest import MANIFEST
from msa_train.memory.bank.snapshot import BankSnapshot, GenerationGoneError
from msa_train.memory.search.tiered import Searcher
from msa_train.memory.search.tiers import BankLoader, TierSettings, snapshot_view
from msa_train.memory.search.view import MemoryView
from msa_train.model.config import RouterConfig
from msa_train.model.decoder import MSADecoder

_TRIES = 5  # a writer may compact the bank between two ranks' opening


class RanksOfBanks(Protocol):
    """Processes that share the documents of banks: memory/ranks."""

    def shards(self, bank: BankSnapshot, router: RouterConfig) -> Searcher: ...


class LiveBank:
    """What a server or a command asks. Thread-safe; a view once taken stays as it is."""

    def __init__(
        self,
        path: Path | str,
        router: RouterConfig,
        fingerprint: Mapping[str, str],
        searchers: BankLoader | RanksOfBanks,
    ):
        self.path, self._router = Path(path), router
        self._fingerprint, self._searchers = dict(fingerprint), searchers
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self.bank: BankSnapshot | None = None
        self._view: MemoryView | None = None
        self.refresh()

    @classmethod
    def open(
        cls,
        path: Path | str,
        model: MSADecoder,
        fingerprint: Mapping[str, str],
        settings: TierSettings | None = None,
        ranks: RanksOfBanks | None = None,
    ) -> LiveBank:
        """fingerprint: of `model`, which another model's bank refuses. ranks: search with others.

        Raises BankError for what is missing, damaged or built by other weights.
        """
        config, device = model.config, model.model.embed_tokens.weight.device
        searchers = ranks or BankLoader(settings or TierSettings(), config.router, device)
        return cls(path, config.router, fingerprint, searchers)

    @property
    def view(self) -> MemoryView:
        """The newest committed state, whoever committed it."""
        if self._stat() != self._seen:
            self.refresh()
        assert self._view is not None
        return self._view

    def refresh(self) -> MemoryView:
        """Opens what was committed since; costs what changed."""
        with self._lock:
            seen = self._stat()
            for left in reversed(range(_TRIES)):
                try:
                    self._take(BankSnapshot.open(self.path, self._fingerprint, self.bank))
                    break
                except GenerationGoneError:  # ranks came too late: compacted meanwhile
                    if not left:
                        raise
            self._seen = seen
            return self._view

    def close(self) -> None:
        """Lets go of the bank; ranks go on with others."""
        if isinstance(self._searchers, BankLoader):
            self._searchers.close()

    def _take(self, bank: BankSnapshot) -> None:
        # A bank that was built again in its place may be of the same generation.
        if self.bank is None or bank.manifest != self.bank.manifest:
            self._view = self._searched(bank)
            self.bank = bank

    def _searched(self, bank: BankSnapshot) -> MemoryView:
        if not isinstance(self._searchers, BankLoader):
            shards = self._searchers.shards(bank, self._router)
            return snapshot_view(bank, shards, self._router)
        view = self._searchers.view(bank)
        self._searchers.keep_only([bank])
        return view

    def _stat(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path / MANIFEST)
        except OSError as error:
            raise BankError(f"{self.path} is no memory bank any more: {error}") from error
        return found.st_ino, found.st_mtime_ns, found.st_size
