"""How a CPU multiplies a few query vectors with tiles of keys, which it should read once.

float32 keys are multiplied where they lie. Narrower ones are widened, a cache's part of them at a
time: reading is then no longer the limit, because torch widens and multiplies in two passes. Where
query vectors are few, and torch or the processor multiplies narrow numbers itself, keys are left as
they are and the query is made narrow instead; `rounding` says what that costs at most.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from msa_kernels.quantised import QuantisedKeys

TILE_BYTES = 8 << 20  # keys of a tile that are read where they lie, at most (measured)
TILE_CHUNKS = 32768  # chunks of a tile, at most (measured; in small tiles Python's calls cost time)
WIDE_BYTES = 1 << 20  # widened keys of a tile, at most: they stay in a core's cache (measured)
FEW = 8  # query vectors; the two parts of so many fill a tile of the processor's matrix unit
GEMV_WIDTH = 192  # of keys: torch's float16 product takes as long for shorter ones (measured)
_KEPT_BYTES = 8 << 20  # of a thread's buffers, each


class Product(ABC):
    """Products of float32 query vectors [r, V] and keys [C, V].

    rounding: a product is off by no more than this times |query| and the length of the longest
    key, beside what float32 sums lose. tile_chunks: how many chunks are multiplied at once. most:
    query vectors it is for.
    """

    rounding: float = 0.0
    most: float = math.inf
    tile_chunks: int

    def prepared(self, vectors: Tensor) -> Any:
        """Query vectors [r, V] as `multiply` takes them: made once a search."""
        return vectors

    @abstractmethod
    def multiply(self, query: Any, start: int, stop: int, out: Tensor) -> None:
        """Writes the products of the chunks start..stop-1 into out [r, stop - start].

        As few Python calls as possible: threads take turns at them.
        """


def products_of(keys: Tensor | QuantisedKeys, longest: float | None = None) -> list[Product]:
    """Those that this processor has for these keys, that for the fewest query vectors first.

    longest: no key is longer (None: not known, and nothing is multiplied that could overflow).
    """
    if isinstance(keys, QuantisedKeys):
        integers = keys.values.dtype == torch.int8 and _processor_has("avx512_vnni", "avx_vnni")
        return [*([Int8Product(keys)] if integers else []), WideProduct(keys)]
    if keys.dtype == torch.float32:
        return [Float32Product(keys)]
    if keys.dtype == torch.float16 and keys.shape[1] >= GEMV_WIDTH and longest is not None:
        return [Float16Product(keys, longest), WideProduct(keys)]
    matrices = keys.dtype == torch.bfloat16 and _processor_has("amx_bf16")
    return [*([BFloat16Product(keys)] if matrices else []), WideProduct(keys)]


class Float32Product(Product):
    """Keys are multiplied where they lie."""

    def __init__(self, keys: Tensor):
        self._keys = keys
        self.tile_chunks = _chunks(TILE_BYTES, 4 * keys.shape[1])

    def multiply(self, query: Tensor, start: int, stop: int, out: Tensor) -> None:
        torch.mm(query, self._keys[start:stop].T, out=out)


class WideProduct(Product):
    """Keys of any form are widened to float32, in one buffer per thread."""

    def __init__(self, keys: Tensor | QuantisedKeys):
        self._scales = keys.scales if isinstance(keys, QuantisedKeys) else None
        self._keys = keys.values if isinstance(keys, QuantisedKeys) else keys
        self._width = self._keys.shape[1]
        self.tile_chunks = _chunks(WIDE_BYTES, 4 * self._width)

    def multiply(self, query: Tensor, start: int, stop: int, out: Tensor) -> None:
        wide = scratch("wide", (stop - start, self._width), torch.float32)
        wide.copy_(self._keys[start:stop])
        if self._scales is not None:
            heads = wide.view(len(wide), self._scales.shape[1], -1)
            heads.mul_(self._scales[start:stop, :, None])
        torch.mm(query, wide.T, out=out)


class Float16Product(Product):
    """float16 keys where they lie, and one query vector: torch adds such products in float32.

    The vector is rounded to float16 and so is the product. Both are scaled by a power of two, so
    that they neither overflow nor lose bits below float16's smallest normal number.
    """

    rounding: ClassVar[float] = 1.02 * 2.0**-10
    most = 1
    _LARGEST = 2.0**15

    def __init__(self, keys: Tensor, longest: float):
        self._keys, self._longest = keys, max(1.0, longest)
        self.tile_chunks = _chunks(TILE_BYTES, 2 * keys.shape[1])

    def prepared(self, vectors: Tensor) -> tuple[Tensor, float]:
        """[V] times a power of two, and what takes that back."""
        length = max(float(vectors.norm()), 1e-30) * self._longest
        power = math.floor(math.log2(self._LARGEST / length))
        return vectors[0].double().mul(2.0**power).half(), 2.0**-power

    def multiply(self, query: tuple[Tensor, float], start: int, stop: int, out: Tensor) -> None:
        vector, back = query
        found = scratch("found", (stop - start,), torch.float16)
        torch.mv(self._keys[start:stop], vector, out=found)
        out[0].copy_(found).mul_(back)


class BFloat16Product(Product):
    """bfloat16 keys where they lie, on processors with a matrix unit (AMX).

    A query vector is the sum of two bfloat16 ones. The unit adds in float32, but what it leaves is
    rounded to bfloat16.
    """

    rounding: ClassVar[float] = 1.02 * 2.0**-8
    most = FEW

    def __init__(self, keys: Tensor):
        self._keys = keys
        self.tile_chunks = _chunks(TILE_BYTES, 2 * keys.shape[1])

    def prepared(self, vectors: Tensor) -> Tensor:
        """[V, 2 r]"""
        high = vectors.bfloat16()
        return torch.cat([high, (vectors - high).bfloat16()]).T

    def multiply(self, query: Tensor, start: int, stop: int, out: Tensor) -> None:
        found = scratch("found", (stop - start, query.shape[1]), torch.bfloat16)
        torch.mm(self._keys[start:stop], query, out=found)
        high, low = found.T.chunk(2)
        out.copy_(high).add_(low)


class Int8Product(Product):
    """8-bit keys where they lie, on processors that add products of 8-bit integers (VNNI).

    Each head of a query vector is two 8-bit integers a value, times a scale: 13 bits of it. Heads
    are multiplied apart, because a chunk's heads have scales of their own.
    """

    _STEPS = 63  # half of what 8 bits hold: no processor's 16-bit sums of two products overflow

    def __init__(self, keys: QuantisedKeys):
        self._values, self._scales = keys.values, keys.scales
        self._heads = keys.scales.shape[1]
        head = keys.values.shape[1] // self._heads
        self.rounding = 1.1 * math.sqrt(head) / (4 * self._STEPS**2)
        # Beyond, columns of products outgrow the keys.
        self.most = min(FEW, head // 16)
        self.tile_chunks = _chunks(TILE_BYTES, keys.values.shape[1])

    def prepared(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns [V, 2 r G]; what makes [r G] heads of them; what adds the heads up: [r, r G]."""
        heads = vectors.view(len(vectors), self._heads, -1)
        step = heads.abs().amax(2, keepdim=True).clamp(min=1e-30) / self._STEPS
        high = (heads / step).round()
        low = ((heads / step - high) * (2 * self._STEPS)).round()
        rows, ones = len(vectors) * self._heads, torch.eye(self._heads)
        parts = [(x.unsqueeze(1) * ones[:, :, None]).reshape(rows, -1) for x in (high, low)]
        joined = torch.cat([step.view(-1).diag(), (step / (2 * self._STEPS)).view(-1).diag()])
        total = torch.eye(len(vectors)).repeat_interleave(self._heads, 1)
        return torch.cat(parts).to(torch.int8).T, joined, total

    def multiply(
        self, query: tuple[Tensor, Tensor, Tensor], start: int, stop: int, out: Tensor
    ) -> None:
        columns, joined, total = query
        chunks, count = stop - start, columns.shape[1]
        found = scratch("integers", (chunks, count), torch.int32)
        torch._int_mm(self._values[start:stop], columns, out=found)
        wide = scratch("wide", (chunks, count), torch.float32)
        heads = torch.mm(
            wide.copy_(found), joined, out=scratch("found", (chunks, count // 2), torch.float32)
        )
        heads.view(chunks, -1, self._heads).mul_(self._scales[start:stop, None])
        torch.mm(total, heads.T, out=out)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of this thread, which stays for the next search: fresh pages cost as much as sums."""
    size = math.prod(shape) * dtype.itemsize
    held = _buffers.held.get(name)
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8)
        if size <= _KEPT_BYTES:
            _buffers.held[name] = held
    return held[:size].view(dtype).view(shape)


def _chunks(size: int, each: int) -> int:
    return max(1, min(TILE_CHUNKS, size // max(1, each)))


@cache
def _processor_has(*features: str) -> bool:
    """Whether this processor has one of these, and torch the library that uses it."""
    found = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(found.get(each) for each in features)
