"""Where each byte of a memory lies: router keys to be searched, pooled K and V to be read.

    router keys   on the computing device in the form `keys`; "stored": as the bank has them
                  (mapped from disk on a CPU)
    pooled K, V   mapped from disk, or in (pinned) host memory
    hot           documents read lately, on the computing device, within a budget

A search in layer l also names the documents that the layers above will probably read: they are
fetched ahead, while those layers compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.cache import HotDocuments
from msa_train.memory.search.keys import LayerKeys
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.shard import Part, Shard
from msa_train.memory.search.tiered import Searcher, TieredMemory
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Share:
    """Which part of every segment a rank holds: shares of all ranks, in proportion."""

    rank: int = 0
    shares: tuple[float, ...] = (1.0,)

    def rows(self, chunk_cu: Tensor) -> tuple[int, int]:
        """(first, end) documents of a segment, about this rank's share of its chunks."""
        total = sum(self.shares)
        before = sum(self.shares[: self.rank]) / total
        after = sum(self.shares[: self.rank + 1]) / total
        chunks, documents = int(chunk_cu[-1]), len(chunk_cu) - 1
        cuts = torch.tensor([before * chunks, after * chunks], dtype=torch.float64)
        first, end = torch.searchsorted(chunk_cu.double(), cuts).tolist()
        return min(first, documents), documents if after == 1 else min(end, documents)


class BankLoader:
    """Banks as a model on `device` searches them. Segments opened before are used again."""

    def __init__(
        self,
        settings: TierSettings,
        router: RouterConfig,
        device: torch.device | str = "cpu",
        share: Share | None = None,
    ):
        self.settings, self.router, self.device = settings, router, torch.device(device)
        self.share = share or Share()
        self.hot = HotDocuments(int(settings.hot_mb * (1 << 20)))
        # Where nothing is kept, nothing is fetched ahead.
        ahead = settings.prefetch and settings.hot_mb > 0
        self.ahead = ThreadPoolExecutor(1, "prefetch") if ahead else None
        cuda = self.device.type == "cuda"
        self.copies = torch.cuda.Stream(self.device) if ahead and cuda else None
        self._opened: dict[str, _LoadedSegment] = {}

    def view(self, bank: BankSnapshot) -> MemoryView:
        """A snapshot's view. Raises BankError for router keys that were changed on disk."""
        return snapshot_view(bank, self.shard(bank), self.router)

    def shard(self, bank: BankSnapshot) -> Shard:
        """This rank's part of a snapshot."""
        parts = []
        for first, segment in zip(bank.starts, bank.segments, strict=False):
            tier = self._opened.get(segment.identity)
            if tier is None:
                tier = self._opened[segment.identity] = _LoadedSegment(segment, self)
            parts.append(tier.part(int(first)))
        return Shard(parts, self.router, bank.live)

    def keep_only(self, banks: Sequence[BankSnapshot]) -> None:
        """Lets go of segments that none of these snapshots has."""
        needed = {segment.identity for bank in banks for segment in bank.segments}
        self._opened = {name: tier for name, tier in self._opened.items() if name in needed}

    def close(self) -> None:
        if self.ahead:
            self.ahead.shutdown(wait=True, cancel_futures=True)


def snapshot_view(bank: BankSnapshot, shards: Searcher, router: RouterConfig) -> MemoryView:
    """A snapshot as a model reads it, whoever searches its documents."""
    form, counts = bank.manifest.form, bank.chunk_cu.diff()
    memory = TieredMemory(shards, form.kv_heads, form.head_dim, router, counts, bank.live)
    return MemoryView(memory, bank.numbers, bank, bank.live)


def bank_view(
    bank: BankSnapshot, router: RouterConfig, device: torch.device | str = "cpu"
) -> MemoryView:
    """A bank searched as it lies on disk: what a laptop does."""
    return BankLoader(TierSettings(), router, device).view(bank)


class _LoadedSegment:
    """This rank's documents of a segment, first..end-1, and where their states lie."""

    def __init__(self, segment: Segment, tiers: BankLoader):
        form, settings = segment.form, tiers.settings
        self._segment, self._hot, self._ahead = segment, tiers.hot, tiers.ahead
        self._device, self._copies = tiers.device, tiers.copies
        self._waiting: Future | None = None  # the newest order to fetch ahead
        self._first, end = tiers.share.rows(segment.chunk_cu)
        cu = segment.chunk_cu[self._first : max(end, self._first) + 1]
        self._chunk_cu = cu - cu[0]
        chunks = slice(int(cu[0]), int(cu[-1]))
        self._keys, self._pooled = {}, {}
        for layer in form.layers:
            segment.check_keys(layer)
            states = segment.pooled[layer]
            own = Pooled(states.k[chunks], states.v[chunks], states.key[chunks])
            self._keys[layer] = LayerKeys(
                own.key, self._chunk_cu, tiers.router, form.kv_heads, settings.keys, self._device
            )
            self._pooled[layer] = self._in_host(own) if settings.states == "host" else own

    def part(self, place: int) -> Part:
        """place: of the segment's first document in the memory."""
        return Part(place + self._first, self._chunk_cu, self._keys, self.read)

    def read(self, layer: int, rows: Tensor) -> Pooled:
        """States of documents of this part, on the device; the layers above are fetched ahead."""
        found = self._fetch(layer, rows.tolist())
        if self._ahead is not None:
            self._order_ahead([other for other in self._pooled if other > layer], rows.tolist())
        states = [[getattr(each, name) for each in found] for name in ("k", "v", "key")]
        if self._copies is not None:  # which may write there once the cache lets go of a document
            reader = torch.cuda.current_stream(self._device)
            for tensor in chain(*states):
                tensor.record_stream(reader)
        return Pooled(*map(torch.cat, states))

    def _fetch(self, layer: int, rows: list[int], ahead: bool = False) -> list[Pooled]:
        keys = [(self._segment.identity, layer, row) for row in rows]

        def read(missing: Sequence) -> list[Pooled]:
            return self._from_below(layer, torch.tensor([row for _, _, row in missing]))

        return self._hot.get(keys, read, ahead)

    def _order_ahead(self, layers: list[int], rows: list[int]) -> None:
        """In place of an order that has not begun: its layers are being read already."""
        if self._waiting is not None:
            self._waiting.cancel()
        with contextlib.suppress(RuntimeError):  # closed: nothing is fetched ahead any more
            self._waiting = self._ahead.submit(self._fetch_ahead, layers, rows)

    def _fetch_ahead(self, layers: list[int], rows: list[int]) -> None:
        """In the prefetching thread: a copy stream of its own, so that nothing waits for it."""
        on_cpu = self._copies is None
        with contextlib.nullcontext() if on_cpu else torch.cuda.stream(self._copies):
            for layer in layers:
                self._fetch(layer, rows, ahead=True)

    def _from_below(self, layer: int, rows: Tensor) -> list[Pooled]:
        """Copies, one of each document: what the cache lets go of is free, whatever it keeps."""
        self._segment.check_states(layer, rows + self._first)
        states, cu = self._pooled[layer], self._chunk_cu
        found = [
            Pooled(
                *(
                    x[first:end].to(self._device, copy=True, non_blocking=True)
                    for x in (states.k, states.v, states.key)
                )
            )
            for first, end in zip(cu[rows].tolist(), cu[rows + 1].tolist(), strict=True)
        ]
        if self._device.type == "cuda":  # others may read them from now on
            torch.cuda.current_stream(self._device).synchronize()
        return found

    def _in_host(self, states: Pooled) -> Pooled:
        """Copies in memory, pinned where a device reads them."""
        copies = [x.clone() for x in (states.k, states.v)]
        if self._device.type == "cuda":
            copies = [x.pin_memory() for x in copies]
        return Pooled(*copies, states.key)
