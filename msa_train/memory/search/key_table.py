"""Router keys of one bank on a device: one tensor per router layer, in which segments have rows.

A search then launches as much for a hundred segments as for one. A segment that is added is written
behind the others, or where one was let go; older views go on with the rows that they know.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from msa_kernels import QuantisedKeys, quantise
from msa_kernels.quantised import FORMATS
from torch import Tensor

from msa_train.memory.search.settings import KeyForm

SearchedKeys = Tensor | QuantisedKeys
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK = 1 << 16  # chunks that are converted at once
# Of the rows of a table that had to grow: room for what is added next. The first segments are given
# what they take, which is what a plan counts.
_SPARE_SHARE, _SPARE_ROWS = 64, 1024


@dataclass(frozen=True)
class PlacedKeys:
    """Where a segment's keys of one layer are searched.

    all(): the keys of the layer, those of others among them; first: its own first row there. holds:
    what keeps the rows its own.
    """

    all: Callable[[], SearchedKeys]
    first: int = 0
    holds: object = None

    def own(self, chunks: int) -> SearchedKeys:
        """Those of its `chunks` chunks."""
        return rows_of(self.all(), slice(self.first, self.first + chunks))


class KeyRows:
    """Rows first..first+count-1 of every layer of a table, until nobody holds this any more."""

    def __init__(self, table: KeyTable, first: int, count: int):
        self._table, self.first, self.count = table, first, count

    def write(self, layer: int, full: Tensor) -> None:
        """See KeyTable.write."""
        self._table.write(layer, self, full)

    def placed(self, layer: int) -> PlacedKeys:
        return PlacedKeys(partial(self._table.keys, layer), self.first, self)


class KeyTable:
    """Keys [rows, V] of some layers, in the form in which they are searched. Thread-safe.

    widths: layer -> V; dtype: as they are stored; heads: of a key; form: see LayerKeys.

    Growing copies on the device, one layer after another: at its peak a table takes what it holds,
    its spare rows, and one layer more.
    """

    def __init__(
        self,
        widths: Mapping[int, int],
        dtype: torch.dtype,
        heads: int,
        form: KeyForm,
        device: torch.device | str,
    ):
        self.device, self._widths, self._heads = torch.device(device), widths, heads
        self._form, self._dtype = form, FLOATS.get(form, dtype)
        self._lock = threading.Lock()
        self._freed: deque[tuple[int, int]] = deque()  # by the garbage collector, in any thread
        self._free: list[tuple[int, int]] = []  # first and end, ascending
        self.rows = 0
        self._keys = {layer: self._empty(layer, 0) for layer in widths}

    def keys(self, layer: int) -> SearchedKeys:
        """All rows of a layer; what is nobody's holds any numbers."""
        return self._keys[layer]

    def place(self, counts: Sequence[int]) -> list[KeyRows]:
        """Rows for segments of so many chunks each; the table grows once where there are none."""
        with self._lock:
            self._take_back()
            free, found = list(self._free), []
            for place, count in enumerate(counts):
                first = _first_fit(free, count)
                if first is None:
                    # Behind all others, where the rows at the end are free already.
                    lacking = sum(counts[place:]) - _tail(free, self.rows)
                    spare = self.rows // _SPARE_SHARE + _SPARE_ROWS if self.rows else 0
                    free = _joined([*free, self._grow(lacking + spare)])
                    first = _first_fit(free, count)
                found.append((first, count))
            self._free = free
        return [self._rows(*each) for each in found]

    def write(self, layer: int, rows: KeyRows, full: Tensor) -> None:
        """The keys [count, V] of a segment, as they are stored; block by block, because they may be
        a mapped file."""
        with self._lock:  # or they might be written to what was copied a moment ago
            for start in range(0, len(full), BLOCK):
                block = full[start : start + BLOCK].to(self.device)
                at = slice(rows.first + start, rows.first + start + len(block))
                self._write(rows_of(self._keys[layer], at), block)

    def _write(self, target: SearchedKeys, block: Tensor) -> None:
        if isinstance(target, QuantisedKeys):
            block = quantise(block, self._heads, self._form)
        _copy(block, target)

    def _rows(self, first: int, count: int) -> KeyRows:
        rows = KeyRows(self, first, count)
        weakref.finalize(rows, self._freed.append, (first, first + count)).atexit = False
        return rows

    def _take_back(self) -> None:
        back = [self._freed.popleft() for _ in range(len(self._freed))]
        self._free = _joined([*self._free, *back])

    def _grow(self, count: int) -> tuple[int, int]:
        before, after = self.rows, self.rows + count
        for layer in self._widths:
            larger, known = self._empty(layer, after), slice(before)
            _copy(rows_of(self._keys[layer], known), rows_of(larger, known))
            self._keys[layer] = larger
            if before and self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.empty_cache()  # or the smaller tensors would stay, layer by layer
        self.rows = after  # last: where memory runs out, some layers have rows that none knows
        return before, after

    def _empty(self, layer: int, rows: int) -> SearchedKeys:
        width = self._widths[layer]
        # Not inference tensors, even where a question opens the bank: they are written to later.
        with torch.inference_mode(False):
            empty = partial(torch.empty, device=self.device)
            if self._form not in FORMATS:
                return empty(rows, width, dtype=self._dtype)
            numbers = [empty(rows, dtype=torch.float32) for _ in range(2)]
            values = empty(rows, width, dtype=FORMATS[self._form][0])
            return QuantisedKeys(values, empty(rows, self._heads, dtype=torch.float32), *numbers)


def rows_of(keys: SearchedKeys, rows: slice) -> SearchedKeys:
    """Some rows, without a copy."""
    if isinstance(keys, QuantisedKeys):
        return QuantisedKeys(*(part[rows] for part in vars(keys).values()))
    return keys[rows]


def _copy(source: SearchedKeys, target: SearchedKeys) -> None:
    if isinstance(source, QuantisedKeys):
        for name, part in vars(source).items():
            getattr(target, name).copy_(part)
    else:
        target.copy_(source)


def _first_fit(free: list[tuple[int, int]], count: int) -> int | None:
    """The first of `count` free rows, which are taken from the list; None where there are none."""
    for place, (first, end) in enumerate(free):
        if end - first >= count:
            left = [(first + count, end)] if end - first > count else []
            free[place : place + 1] = left
            return first
    return None if count else 0


def _tail(free: list[tuple[int, int]], rows: int) -> int:
    """Free rows at the end of the table."""
    return free[-1][1] - free[-1][0] if free and free[-1][1] == rows else 0


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, neighbours as one."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], end
        elif end > first:
            found.append((first, end))
    return found
