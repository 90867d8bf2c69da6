"""Opens banks for search: where each byte of a memory lies.

router keys      on the computing device, in the form `keys`, in one table for all segments of a
                 bank (key_table.py); `stored` ones on a CPU: mapped
pooled K and V   mapped from disk, or in host memory
hot documents    read lately, on the computing device, within a budget (cache.py, device_cache.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from data_pipeline.bm25 import BM25
from msa_train.memory.bank.checks import check_keys
from msa_train.memory.bank.manifest import BankForm
from msa_train.memory.bank.segment import Segment
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.search.cache import HotDocuments
from msa_train.memory.search.device_cache import DeviceDocuments, gather
from msa_train.memory.search.key_table import KeyRows, KeyTable
from msa_train.memory.search.keys import LayerKeys, chunks_of
from msa_train.memory.search.searcher import LocalSearcher, Part
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.view import MemoryView
from msa_train.model.attention import Pooled
from msa_train.model.config import RouterConfig


@dataclass(frozen=True)
class Share:
    """Which part of every segment a rank holds; shares: of all ranks, in proportion."""

    rank: int = 0
    shares: tuple[float, ...] = (1.0,)

    def rows(self, chunk_cu: Tensor) -> tuple[int, int]:
        """(first, end) documents of a segment, with about this rank's share of its chunks."""
        total = sum(self.shares)
        before = sum(self.shares[: self.rank]) / total
        after = sum(self.shares[: self.rank + 1]) / total
        chunks, documents = int(chunk_cu[-1]), len(chunk_cu) - 1
        cuts = torch.tensor([before * chunks, after * chunks], dtype=torch.float64)
        first, end = torch.searchsorted(chunk_cu.double(), cuts).tolist()
        return min(first, documents), documents if after == 1 else min(end, documents)


@dataclass(frozen=True)
class KeyChecks:
    """The router keys that one of several ranks compares with their checksums, so that each file is
    read by one of them: every `ranks`-th file of some segments, from number `rank` on.

    segments: names of those that no rank has read.
    """

    segments: tuple[str, ...]
    rank: int
    ranks: int

    def files(self, bank: BankSnapshot) -> list[tuple[Segment, int]]:
        """(segment, layer) of each."""
        wanted = [segment for segment in bank.segments if segment.entry.name in self.segments]
        files = [(segment, layer) for segment in wanted for layer in segment.form.layers]
        return files[self.rank :: self.ranks]


class BankLoader:
    """Opens snapshots on `device`. A segment that a searcher holds already is not read again.

    share: which documents are this process's (None: all).
    """

    def __init__(
        self,
        settings: TierSettings,
        device: torch.device | str = "cpu",
        share: Share | None = None,
    ):
        self.settings, self.device = settings, torch.device(device)
        self.share = share or Share()
        budget, ahead = int(settings.hot_mb * (1 << 20)), settings.prefetch
        on_cpu = self.device.type == "cpu"
        self.hot = (
            HotDocuments(budget, ahead) if on_cpu else DeviceDocuments(budget, self.device, ahead)
        )
        self._loaded: WeakValueDictionary[tuple[str, RouterConfig], _LoadedSegment]
        self._loaded = WeakValueDictionary()  # the searchers hold them
        self._tables: WeakValueDictionary[tuple, KeyTable] = WeakValueDictionary()  # and these

    def searcher(
        self, bank: BankSnapshot, router: RouterConfig, checks: KeyChecks | None = None
    ) -> LocalSearcher:
        """The documents of a snapshot that are this process's.

        checks: which router keys this process compares with their checksums (None: all that it is
        to read). Raises BankError for router keys that were changed on disk.
        """
        held = {
            segment.identity: self._loaded.get((segment.identity, router))
            for segment in bank.segments
        }
        new = [segment for segment in bank.segments if held[segment.identity] is None]
        check_keys(checks.files(bank) if checks else [*self._read(new)])
        for segment, rows in zip(new, self._placed(new, router), strict=True):
            loaded = _LoadedSegment(segment, router, self, rows)
            held[segment.identity] = self._loaded[segment.identity, router] = loaded
        parts = [
            held[segment.identity].part(int(first), self.hot)
            for first, segment in zip(bank.starts, bank.segments, strict=False)
        ]
        on_device = isinstance(self.hot, DeviceDocuments)
        return LocalSearcher(parts, router, bank.live, self.hot.read if on_device else None)

    def _read(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, int]]:
        """Segments and layers of which this process has documents."""
        for segment in segments:
            first, end = self.share.rows(segment.chunk_cu)
            if first < end:
                yield from product([segment], segment.form.layers)

    def _placed(
        self, segments: Sequence[Segment], router: RouterConfig
    ) -> list[KeyRows] | list[None]:
        """Rows on the device for the keys of this process's documents; None on a CPU, which
        searches keys where they are."""
        if self.device.type == "cpu" or not segments:
            return [None] * len(segments)
        # The segments of a bank, and of one form: another bank may have been built in its place.
        name = segments[0].folder.parent.resolve(), str(segments[0].form.to_json()), router
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = _key_table(segments[0].form, self.settings, self.device)
        bounds = [(segment.chunk_cu, self.share.rows(segment.chunk_cu)) for segment in segments]
        return table.place([int(cu[max(first, end)] - cu[first]) for cu, (first, end) in bounds])

    def close(self) -> None:
        self.hot.close()


def bank_view(
    bank: BankSnapshot,
    router: RouterConfig,
    loader: BankLoader | None = None,
    words: BM25 | None = None,
) -> MemoryView:
    """A bank, opened by this process alone. loader: None for one with default settings. words: of
    its documents, see MemoryView."""
    loader = loader or BankLoader(TierSettings())
    return MemoryView.of(bank, loader.searcher(bank, router), router, words)


def _key_table(form: BankForm, settings: TierSettings, device: torch.device) -> KeyTable:
    widths = {layer: form.shapes(layer)["key"][0] for layer in form.layers}
    heads = form.key_heads or form.kv_heads
    return KeyTable(widths, form.torch_dtype, heads, settings.keys, device)


class _LoadedSegment:
    """This process's documents of a segment: keys to search, K and V to copy (StoredDocuments)."""

    def __init__(
        self, segment: Segment, router: RouterConfig, loader: BankLoader, rows: KeyRows | None
    ):
        form, settings = segment.form, loader.settings
        self.identity, self.layers = segment.identity, form.layers
        self._segment, self._device = segment, loader.device
        self._first, end = loader.share.rows(segment.chunk_cu)
        cu = segment.chunk_cu[self._first : max(end, self._first) + 1]
        self._chunk_cu = cu - cu[0]
        chunks = slice(int(cu[0]), int(cu[-1]))
        self._keys, self._pooled = {}, {}
        for layer in form.layers:
            states = segment.pooled[layer]
            own = states.map(lambda x: x[chunks])
            if rows is not None:
                rows.write(layer, own.key)
            self._keys[layer] = LayerKeys(
                own.key,
                self._chunk_cu,
                router,
                form.key_heads or form.kv_heads,
                settings.keys,
                self._device,
                None if rows is None else rows.placed(layer),
            )
            self._pooled[layer] = _in_host(own) if settings.states == "host" else own

    def part(self, place: int, hot: HotDocuments | DeviceDocuments) -> Part:
        """place: of the segment's first document in the memory."""
        read = self if isinstance(hot, DeviceDocuments) else partial(hot.read, self)
        return Part(place + self._first, self._chunk_cu, self._keys, read)

    def counts(self, rows: Tensor) -> Tensor:
        """[p] chunks of each document."""
        return self._chunk_cu[rows + 1] - self._chunk_cu[rows]

    def states(self, layer: int) -> Pooled:
        """Of all chunks, in host memory or mapped."""
        return self._pooled[layer]

    def read_into(self, layer: int, rows: Tensor, out: Pooled) -> None:
        """States of all chunks of some documents. Raises BankError for damaged ones."""
        self._segment.check_states(layer, rows + self._first)
        gather(self._pooled[layer], chunks_of(rows, self._chunk_cu), out)

    def copies(self, layer: int, rows: list[int]) -> list[Pooled]:
        """Of one document each: what the cache drops is free, whatever else it keeps."""
        place = torch.tensor(rows)
        self._segment.check_states(layer, place + self._first)
        states, cu = self._pooled[layer], self._chunk_cu
        return [
            states.map(lambda x, own=own: x[own].clone())
            for own in map(slice, cu[place].tolist(), cu[place + 1].tolist())
        ]


def _in_host(states: Pooled) -> Pooled:
    """Copies of K and V in memory."""
    return Pooled(states.k.clone(), states.v.clone(), states.key)
