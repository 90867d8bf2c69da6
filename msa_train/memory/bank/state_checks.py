"""Checksums of documents' pooled keys and values, each compared when the document is first read."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from msa_train.model.attention import Pooled


def raw_bytes(states: Tensor) -> memoryview:
    return memoryview(states.contiguous().flatten().view(torch.uint8).numpy())


def rows_crc(k: memoryview, v: memoryview, bounds: np.ndarray) -> np.ndarray:
    """[n] checksum of each document's bytes of k and v, which lie between `bounds` [n+1]."""
    places = bounds.tolist()
    found = [zlib.crc32(v[a:b], zlib.crc32(k[a:b])) for a, b in pairwise(places)]
    return np.array(found, dtype="<u4")


class StateChecks:
    """K and V of n documents in one layer, in host memory, beside what was written.

    chunk_cu [n+1] of the documents; crc [n] as rows_crc gives it. A document that was compared is
    known from then on.
    """

    def __init__(self, states: Pooled, chunk_cu: Tensor, crc: np.ndarray):
        self._k, self._v = raw_bytes(states.k), raw_bytes(states.v)
        self._row_bytes = states.k[:1].nbytes
        self._chunk_cu, self._crc = chunk_cu.numpy(), crc
        self._known = np.zeros(len(crc), dtype=bool)

    def changed(self, rows: Tensor) -> int | None:
        """The first of some documents [p] that is not known and differs from its checksum."""
        given = rows.numpy()
        fresh = given[~self._known[given]]
        starts = (self._chunk_cu[fresh] * self._row_bytes).tolist()
        ends = (self._chunk_cu[fresh + 1] * self._row_bytes).tolist()
        wanted = self._crc[fresh].tolist()
        for row, start, end, crc in zip(fresh.tolist(), starts, ends, wanted, strict=True):
            if zlib.crc32(self._v[start:end], zlib.crc32(self._k[start:end])) != crc:
                return row
        self._known[fresh] = True
        return None

    def all_changed(self) -> np.ndarray:
        """[n] bool: documents that differ from their checksums."""
        return rows_crc(self._k, self._v, self._chunk_cu * self._row_bytes) != self._crc
